"""``anyres check``: what it counts, what it draws, and when its exit code is 2."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from anyres.config import UserError
from anyres.data.annotations.forms import open_annotations
from anyres.data.package_files import PackageFile
from anyres.data.sources import open_source
from anyres.flow import Objects, Size
from anyres.runs.check import check
from tests.command import anyres, refused
from tests.data.drawn import PICTURES, Box, Drawn, coco, paint, write_coco, write_maps, write_voc
from tests.pictures import make_folder

PADDLE = PackageFile(
    package="paddlelabel==1.0.1",
    wheel_sha256="07ca3259de8cb27184c7c128bada824b480cce32112d5c3f1be9de6736e26b89",
    megabytes=11,
    kept="paddlelabel-1.0.1.whl",
    member="",
    sha256="07ca3259de8cb27184c7c128bada824b480cce32112d5c3f1be9de6736e26b89",
    size=11_399_988,
    use="tests",
)


def test_a_set_with_boxes_is_counted_and_drawn(tmp_path: Path) -> None:
    write_coco(tmp_path / "set")
    answer = anyres("check", tmp_path / "set", "--sizes", "33,66,60x40", "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "(COCO json): 3 pictures (train 2, val 1), 14 objects, 2 classes; short side 30 to 33 px" in answer.out
    assert "no fault" in answer.out
    assert (tmp_path / "out" / "box_sizes.png").stat().st_size > 10_000
    assert not (tmp_path / "out" / "faults.csv").exists()
    lines = [line.split() for line in answer.out.splitlines()]
    assert ["cat", "1", "1", "7"] in lines
    assert ["dog", "1", "1", "7"] in lines
    assert [line[0] for line in lines if line[1:2] == ["px"]] == ["33", "66", "60x40"]


def test_boxes_are_measured_at_each_training_size(tmp_path: Path) -> None:
    picture = Drawn("1.png", 40, 20, (Box("cat", 0, 0, 16, 4), Box("dog", 0, 0, 40, 20)))
    write_voc(tmp_path / "set", [picture])
    small, large, warped = check(
        str(tmp_path / "set"), sizes=(Size(10, 10), Size(40, 40), Size(60, 40)), out=tmp_path / "out"
    ).boxes
    sides = np.sqrt([16 * 4, 40 * 20])
    assert (small.median, large.median) == pytest.approx((sides.mean() / 2, sides.mean() * 2))
    assert warped.median == pytest.approx(sides.mean() * np.sqrt(3))
    assert [row.tiny for row in (small, large, warped)] == [1, 0, 0]
    assert (large.small, large.large) == (0.5, 0.0)


def test_what_cannot_be_trained_on_ends_with_2(tmp_path: Path) -> None:
    paint(tmp_path, PICTURES[:2])
    document = coco(PICTURES[:2])
    for row in document["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x, y, x + w, y + h]
    (tmp_path / "train.json").write_text(json.dumps(document))
    answer = anyres("check", tmp_path, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "wrong corners" in answer.out
    assert answer.err.startswith(f"error: {tmp_path} cannot be trained on: train.json: 2 of 12 boxes cannot be, as box")
    assert answer.err.endswith("these look like x1 y1 x2 y2, COCO wants x y width height\n")
    with (tmp_path / "out" / "faults.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["done"] for row in rows} == {"cut to the picture", "stop"}
    told = json.loads(anyres("check", tmp_path, "--out", tmp_path / "out", "--json", "-").out)
    assert told["stop"].startswith("train.json: 2 of 12 boxes")
    assert {"kind": "wrong corners", "done": "stop", "count": 1} in told["fault_counts"]


def test_a_set_of_negatives_teaches_nothing(tmp_path: Path) -> None:
    boxless = [Drawn("1.png", 20, 20, ())]
    write_coco(tmp_path, [*boxless, PICTURES[2]])
    line = refused("check", tmp_path, "--out", tmp_path / "out")
    assert line.endswith("cannot be trained on: train has no object: there is nothing to learn")


def test_classes_of_whole_pictures_are_checked_as_train_reads_them(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "shapes", per_class=4)
    first = next(root.rglob("*.png"), None) or next(root.rglob("*.jpg"))
    first.write_bytes(b"no picture")
    answer = anyres("check", root, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "(classes of whole pictures)" in answer.out
    assert f"{first.relative_to(root).as_posix()}: the picture cannot be read (no JPEG, PNG" in answer.out
    assert "note: no val split: " in answer.out
    for folder in sorted(path for path in root.iterdir() if path.is_dir())[1:]:
        shutil.rmtree(folder)
    assert "to train on: two or more are needed" in refused("check", root)
    assert "did you mean 'shapes'" in refused("check", tmp_path / "shape")


def test_a_task_that_the_set_is_not_for_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "boxes")
    write_maps(tmp_path / "maps", [np.asarray([[0, 1, 255]], np.uint8)], names="a\nb\n")
    assert "boxes has boxes (COCO json): give --task detect" in refused(
        "check", tmp_path / "boxes", "--task", "segment"
    )
    assert "maps has class maps" in refused("check", tmp_path / "maps", "--task", "detect")
    assert "trees has boxes alone" in refused("check", "trees", "--task", "segment")
    answer = anyres("check", tmp_path / "maps")
    assert answer.code == 0, answer.err
    assert [line.split() for line in answer.out.splitlines()][2:4] == [["a", "1", "0", "33.3"], ["b", "1", "0", "33.3"]]
    assert "note: 33.3 % of the pixels are ignored" in answer.out


def test_quick_reads_no_pixels(tmp_path: Path) -> None:
    write_voc(tmp_path / "set", PICTURES[:2])
    path = tmp_path / "set" / "JPEGImages" / "1.png"
    path.write_bytes(path.read_bytes()[:-30])
    whole, quick = (check(str(tmp_path / "set"), out=tmp_path / "out", quick=quick) for quick in (False, True))
    assert [fault.kind for fault in whole.faults.kept] == ["picture unreadable"]
    assert not quick.faults.kept


def test_a_built_in_set_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    line = refused("--offline", "check", "lungs")
    assert f"the network is switched off: go online once, or copy its wheel to {tmp_path}" in line
    with pytest.raises(UserError, match="lungs has boxes or class maps, and no class of a whole picture"):
        open_source("lungs", "train")
    told = anyres("data").out
    assert "299 chest films" in told
    assert "951 tree crowns" in told
    assert max(map(len, told.splitlines())) < 400


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """paddlelabel's pictures, beside their labels in each form."""
    if not PADDLE.path.is_file():
        pytest.skip(f"{PADDLE.package} is not in the cache ({PADDLE.path})")
    return unpacked(PADDLE.path.read_bytes(), tmp_path_factory.mktemp("samples"))


def unpacked(wheel: bytes, root: Path) -> Path:
    """``root/SET/FORM`` with the pictures, and their labels in that form."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in (name for name in archive.namelist() if "/sample/" in name and not name.endswith("/")):
            _, _, which, *parts = name.split("/")
            for form in ("coco", "voc", "yolo") if parts[0] == "img" else parts[1:2] if parts[0] == "detection" else ():
                below = Path("JPEGImages", *parts[1:]) if parts[0] == "img" else Path(*parts[2:])
                at = root / which / form / below
                at.parent.mkdir(parents=True, exist_ok=True)
                at.write_bytes(archive.read(name))
    return root


@pytest.mark.builtin
def test_real_labels_are_the_same_in_every_form(samples: Path) -> None:
    found = {form: open_annotations(str(samples / "bear" / form)) for form in ("coco", "voc", "yolo")}
    assert [each.form for each in found.values()] == ["COCO json", "VOC xml", "YOLO txt"]
    corners = {}
    for form, each in found.items():
        assert not each.faults.counts
        targets = {Path(r.name).name: r.target for r in each.records}
        corners[form] = {name: t.boxes for name, t in sorted(targets.items()) if isinstance(t, Objects)}
    shared = set.intersection(*(set(each) for each in corners.values()))
    assert len(shared) >= 2
    for name in shared:
        for form in ("voc", "yolo"):  # VOC's are whole pixels, and this tool counts them from 0
            assert np.abs(corners[form][name] - corners["coco"][name]).max() <= 1.5, (form, name)


@pytest.mark.builtin
def test_pictures_that_are_not_as_large_as_their_file_says_are_left_out(samples: Path, tmp_path: Path) -> None:
    found = check(str(samples / "fruit" / "coco"), quick=True, out=tmp_path)
    assert [fault.kind for fault in found.faults.kept] == ["another size"] * 4
    assert found.stop is not None
    assert "the file says 756x1008, the picture is" in found.stop
    outside = check(str(samples / "fruit" / "yolo"), quick=True, out=tmp_path)
    assert outside.task == "detect"
