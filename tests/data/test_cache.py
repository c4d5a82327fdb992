from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable
from anyres.data.sources import open_source


@pytest.fixture
def messy(folder: Path, paint) -> Path:
    (folder / "cat" / "0.png").write_text("no image")
    paint("pets/dog/grey.gif")
    for i in range(30):
        paint(f"pets/dog/more{i}.png", seed=i)
    return folder


@pytest.mark.parametrize("short_side", [None, 20])
def test_cached_or_not_the_images_are_the_same(messy: Path, short_side: int | None) -> None:
    source = open_source(str(messy), "trainval")
    kept = DecodedImages(source, short_side, progress=False)
    asked = DecodedImages(source, short_side, budget_gib=0.0)
    assert kept.cached
    assert not asked.cached
    assert len(kept) == len(asked) == 51
    for i, record in enumerate(source.records):
        if record.name == "cat/0.png":
            for images in (kept, asked):
                with pytest.raises(Unreadable, match="no JPEG, PNG"):
                    images[i]
        else:
            assert torch.equal(kept[i].image, asked[i].image)
            assert kept[i].note == asked[i].note
            assert kept[i].name == record.name
    assert kept[1].image is kept[1].image
    assert kept.report() == asked.report()
    unreadable, converted = kept.report()
    assert unreadable == [("cat/0.png", "no JPEG, PNG, WebP, TIFF or other picture")]
    assert converted == [("dog/grey.gif", "palette converted to RGB")]


def test_the_estimate_is_near_the_truth(folder: Path) -> None:
    images = DecodedImages(open_source(str(folder), "trainval"), progress=False)
    assert images.estimated_bytes == pytest.approx(sum(images[i].image.numel() for i in range(20)), rel=0.01)


def test_a_set_with_nothing_readable_is_reported(folder: Path) -> None:
    for path in folder.rglob("*.[pP]*"):
        path.write_text("x")
    images = DecodedImages(open_source(str(folder), "trainval"))
    assert len(images.report()[0]) == 20
    with pytest.raises(UserError, match=r"20 of 20 images are unreadable, as cat/.*: repair or replace"):
        images.check(1.0)


def test_decode_warnings_and_tolerance(messy: Path) -> None:
    source = open_source(str(messy), "trainval")
    kept = DecodedImages(source, progress=False)
    told = {
        "cat/0.png": "unreadable (no JPEG, PNG, WebP, TIFF or other picture): left out",
        "dog/grey.gif": "palette converted to RGB",
    }
    assert kept.decode_warnings() == told
    kept.check(0.001)
    with pytest.raises(UserError, match=r"1 or more of 51 images are unreadable, .*, or raise data\.max_unreadable"):
        kept.check(0.0)
    asked = DecodedImages(source, budget_gib=0.0)
    asked.add_warnings([*told.items(), ("dog/more3.png", "read by a worker")])
    assert asked.decode_warnings() == {**told, "dog/more3.png": "read by a worker"}
