from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable, decode
from anyres.data.framing import Framing
from anyres.data.loader import eval_batches
from anyres.data.sources import open_source
from anyres.data.targets import reader_of
from anyres.data.views import eval_view
from anyres.flow import Size


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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> DecodedImages:
    """The same three large pictures kept at 96 pixels."""
    root = tmp_path_factory.mktemp("photos")
    for i, (width, height) in enumerate([(240, 180), (150, 200), (90, 300)]):
        small = np.random.default_rng(i).integers(0, 256, (9, 7, 3), np.uint8)
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(root / "ab"[i % 2] / f"{i}.jpg", quality=95)
    return DecodedImages(open_source(str(root), "trainval"), 96, progress=False)


@pytest.mark.parametrize("budget", [1.0, 0.0])
@pytest.mark.parametrize(
    ("size", "crop", "warp", "enough"),
    [
        (Size(64, 64), 0.875, False, True),
        (Size(84, 84), 0.875, False, True),  # resized to 96, and cropped
        (Size(85, 85), 0.875, False, False),
        (Size(96, 96), 1.0, False, True),
        (Size(112, 112), 0.875, False, False),
        (Size(96, 64), 1.0, False, True),
        (Size(64, 120), 1.0, False, False),
        (Size(96, 96), 0.875, True, True),
        (Size(97, 90), 0.875, True, False),
    ],
)
def test_evaluation_sees_all_pixels_that_its_size_has_room_for(
    photos: DecodedImages, budget: float, size: Size, crop: float, warp: bool, enough: bool
) -> None:
    """Above what the kept images suffice for, the pixels are those of the files; up to it, of the kept images.

    These differ from the files' a little, as they are resized twice: by less than 2 gray levels on average here.
    """
    images = photos if budget else DecodedImages(photos.source, 96, budget)
    assert images.cached == (budget > 0)
    (batch,) = eval_batches(
        images, photos.source.records, reader_of(photos.source), size, framing=Framing(crop, warp), batch_size=9
    )
    for i, view in enumerate(batch.views[0]):
        kept, whole = photos[i].image, decode(photos.source.records[i]).image
        assert min(kept.shape[1:]) == min(96, *whole.shape[1:])
        from_file, from_cache = (eval_view(image, size, crop, warp) for image in (whole, kept))
        shrunk = kept.shape != whole.shape
        if shrunk and enough:
            assert torch.equal(view, from_cache)
            assert (from_cache.int() - from_file.int()).abs().float().mean() < 2
        elif shrunk and size in ((85, 85), (112, 112)):  # as squares need the short side, no image suffices
            assert not torch.equal(from_cache, from_file)
            assert torch.equal(view, from_file)
        else:
            assert torch.equal(view, from_file) or torch.equal(view, from_cache)


def test_training_sees_the_kept_images(photos: DecodedImages) -> None:
    assert {min(photos[i].image.shape[1:]) for i in range(3)} == {90, 96}
    assert {min(photos.full(i).image.shape[1:]) for i in range(3)} == {90, 150, 180}
