"""Folders of images as they should not be: changed under a run, unreadable, linked in circles, named in two forms.

Also test sets that are no training sets: a class is missing, there is only one, there is only a folder ``test``.
"""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.config import UserError
from anyres.data.decode import Unreadable, decode
from anyres.data.sources import Source, open_source, open_test_set
from anyres.evaluation.classes import relabel
from anyres.flow import Record
from anyres.models import create_model
from anyres.models.weights import save_weights
from anyres.runs.opened import start_from


def fill(root: Path, names: str, count: int = 4) -> Path:
    """``root/NAME/0.png`` ... for every word of ``names``."""
    for place, name in enumerate(names.split()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((16, 16, 3), (40 * place + i) % 256, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def swapped(source: Source) -> Source:
    first, second, *rest = source.records
    return replace(source, records=(second, first, *rest))


def relabelled(source: Source) -> Source:
    first, *rest = source.records
    return replace(source, records=(replace(first, target=1), *rest))


def renamed(source: Source) -> Source:
    first, *rest = source.records
    return replace(source, records=(replace(first, name=f"{first.name} "), *rest))


@pytest.mark.parametrize("change", [swapped, relabelled, renamed])
def test_the_fingerprint_tells_changed_images(tmp_path: Path, change: Callable[[Source], Source]) -> None:
    source = open_source(str(fill(tmp_path / "a", "ant bee")), "train")
    assert change(source).fingerprint() != source.fingerprint()


def test_the_fingerprint_tells_classes_apart_and_no_places(tmp_path: Path) -> None:
    before = open_source(str(fill(tmp_path / "a", "ant café")), "train").fingerprint()
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_source(f"{tmp_path}/b/", "train").fingerprint() == before
    (tmp_path / "b/café").rename(tmp_path / "b" / unicodedata.normalize("NFD", "café"))
    assert open_source(str(tmp_path / "b"), "train").fingerprint() == before
    (tmp_path / "b/ant").rename(tmp_path / "b/zebra")
    assert open_source(str(tmp_path / "b"), "train").fingerprint() != before


def names(source: Source) -> list[str]:
    return [record.name for record in source.records]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of everyone's; the process may read what everyone may, though tests be run as root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


@pytest.mark.parametrize("locked", ["ant", "bee/deep", "."])
def test_a_folder_that_may_not_be_read_ends_the_reading(as_nobody: Path, locked: str) -> None:
    root = fill(as_nobody / "a", "ant bee bee/deep")
    (root / locked).chmod(0)
    try:
        with pytest.raises(UserError, match=rf"{(root / locked).name} cannot be listed: Permission denied"):
            open_source(str(root), "train")
    finally:
        (root / locked).chmod(0o755)


def test_links_that_lead_back_are_left_out_and_told(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", "ant ant/deep bee")
    (root / "ant/up").symlink_to(root)
    (root / "ant/deep/round").symlink_to(root / "ant")
    (root / "self").symlink_to(root)
    source = open_source(str(root), "trainval")
    assert source.classes == ("ant", "bee")
    assert len(source.records) == 12
    told = "\n".join(source.notes)
    assert "2 links that lead back to a folder they lie in" in told
    assert "self is a link that leads back" in told


def test_one_file_has_one_class_and_split_whatever_links_lead_to_it(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", "ant bee")
    (root / "ant/again.png").symlink_to(root / "ant/0.png")
    (root / "ant/all").symlink_to(fill(tmp_path / "b", "cow") / "cow")
    source = open_source(str(root), "trainval")
    assert len(source.records) == 12  # a link to images elsewhere is a way to have them
    assert "1 links to images that are there already (first: ant/again.png): left out" in source.notes
    (root / "bee/other.png").symlink_to(root / "ant/1.png")
    with pytest.raises(UserError, match=r"ant/1\.png and bee/other\.png are one file, by a link"):
        open_source(str(root), "train")
    split = fill(tmp_path / "s", "train/ant train/bee val/ant val/bee")
    (split / "val/ant/9.png").symlink_to(split / "train/ant/0.png")
    with pytest.raises(UserError, match=r"train/ant/0\.png and val/ant/9\.png are one file"):
        open_source(str(split), "train")


def test_what_is_no_file_is_left_out_and_told(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", "ant bee")
    os.mkfifo(root / "ant/pipe.jpg")
    (root / "bee/gone.png").symlink_to(root / "nowhere.png")
    source = open_source(str(root), "trainval")
    assert len(source.records) == 8
    assert sum("that are no files, as pipes are (first:" in note for note in source.notes) == 2
    with pytest.raises(Unreadable, match="it is no file, but a folder, pipe or device"):
        decode(Record(root / "ant/pipe.jpg", 0, "pipe.jpg"))


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = fill(tmp_path / "a", f"train/{composed} train/tea val/{decomposed} val/tea")
    assert open_source(str(root), "val").classes == ("café", "tea")
    both = open_source(str(fill(tmp_path / "b", f"{composed} {decomposed} tea")), "trainval")
    assert (both.classes, len(both.records)) == (("café", "tea"), 12)
    assert relabel(both, (("tea",), (decomposed,))).fingerprint() != both.fingerprint()


def test_names_that_are_no_utf8_can_be_written_everywhere(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", "tea")
    fill(root, os.fsdecode(b"caf\xe9"))
    source = open_source(str(root), "trainval")
    assert source.classes == ("caf\\xe9", "tea")
    for text in (*source.classes, *names(source), *source.notes, source.fingerprint()):
        text.encode()
    assert decode(source.records[0]).image.shape == (3, 16, 16)


@pytest.mark.parametrize("val", ["val", "dev", "Dev", "eval", "valid_set", "validation-data"])
@pytest.mark.parametrize("train", ["train", "training_set"])
def test_splits_are_no_classes(tmp_path: Path, train: str, val: str) -> None:
    root = fill(tmp_path / "a", f"{train}/ant {train}/bee {val}/ant {val}/bee test/ant test/bee")
    for split, folder in (("train", train), ("val", val), ("test", "test")):
        source = open_source(str(root), split)
        assert source.classes == ("ant", "bee")
        assert all(name.startswith(folder) for name in names(source))


def test_what_may_be_a_split_is_not_taken_for_a_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'train' and 'query' hold folders of the same names: if 'query' is a split"):
        open_source(str(fill(tmp_path / "a", "train/ant train/bee query/ant query/bee")), "train")
    with pytest.raises(UserError, match=r"train has no class folders"):
        open_source(str(fill(tmp_path / "b", "train val")), "train")
    assert open_source(str(fill(tmp_path / "c", "train bus")), "train").classes == ("bus", "train")


@pytest.mark.parametrize(
    ("folders", "split", "asked", "count"),
    [
        ("bee ant", None, "all", 8),  # a class is missing
        ("ant", None, "all", 4),
        ("test/ant test/bee test/cow", None, "test", 12),
        ("test/cow", "test", "test", 4),
        ("train/ant train/bee dev/cow", None, "val", 4),  # of a class that it has none of to train on
        ("train/ant train/bee test/bee", None, "test", 4),
    ],
)
def test_a_test_set_is_scored_whole_by_the_names_of_its_classes(
    tmp_path: Path, folders: str, split: str | None, asked: str, count: int
) -> None:
    model = (("cow",), ("ant",), ("bee",))
    source = relabel(open_test_set(str(fill(tmp_path / "a", folders)), split), model)
    assert (source.split, source.classes, len(source.records)) == (asked, ("cow", "ant", "bee"), count)
    assert all(name.split("/")[-2] == source.labels(i)[0] for i, name in enumerate(names(source)))
    with pytest.raises(UserError, match="unknown split 'vall'; did you mean 'val'"):
        open_test_set(str(tmp_path / "a"), "vall")


def test_numbers_and_text_in_another_order_are_the_same_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", " ".join(map(str, range(12))), count=1)
    by_text = open_test_set(str(root), None)
    assert by_text.classes[:3] == ("0", "1", "10")
    by_value = relabel(by_text, tuple((str(i),) for i in range(12)))
    assert [record.target for record in by_value.records] == [int(name.split("/")[0]) for name in names(by_value)]
    with pytest.raises(UserError, match="'11' is not among the classes of the model"):
        relabel(by_text, tuple((str(i),) for i in range(11)))


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    root = str(fill(tmp_path / "a", "test/ant test/bee"))
    with pytest.raises(UserError, match=r"has no val split: name one that it has \(test\)"):
        open_test_set(root, "val")
    with pytest.raises(UserError, match=r"has test but no train split"):
        open_source(root, "train")


def test_a_classifier_is_carried_to_another_order_of_its_classes_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("resmlp_nano", 3).eval()
    path = tmp_path / "w.safetensors"
    save_weights(model, path, {"anyres": json.dumps({"classes": ["ant", "bee", "cow"]})})
    image = torch.randn(1, 3, 64, 64)
    for classes, said in (
        (("ant", "bee", "cow"), "with its classifier too"),
        (("cow", "ant", "bee"), "of the same classes in another order"),
        (("ant", "bee", "dog"), "with a new classifier of 3 classes"),
    ):
        tuned = create_model("resmlp_nano", 3).eval()
        assert said in start_from(tuned, str(path), classes)
        with torch.no_grad():
            before, after = model(image)[0], tuned(image)[0]
        known = [("ant", "bee", "cow").index(name) for name in classes if name != "dog"]
        assert torch.allclose(after[: len(known)], before[known], atol=1e-5) == ("dog" not in classes)
