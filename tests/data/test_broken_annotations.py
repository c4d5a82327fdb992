"""Everything that is wrong with annotations is one line with file, annotation and picture."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from tests.data.drawn import PICTURES, Drawn, coco, paint, write_maps, write_table, write_voc, write_yolo

from anyres.config import UserError
from anyres.data.annotations.annotated import AnnotatedSet, Rules
from anyres.data.annotations.faults import (
    CUT,
    KEPT,
    LEFT_OUT,
    NO_MASK,
    NO_PICTURE,
    STOP,
    TURNED,
    Fault,
    Faults,
    too_many,
)
from anyres.data.annotations.forms import open_annotations
from anyres.data.annotations.voc import parse_xml
from anyres.flow import Objects

Document = dict[str, Any]
TRAIN = PICTURES[:2]
BOXES = 12


def the(annotation: int, **values: object) -> Callable[[Document, Path], None]:
    """Changes one annotation, counted from 1; a value None takes the key away."""

    def change(document: Document, root: Path) -> None:
        row = document["annotations"][annotation - 1]
        row |= values
        for key in [key for key, value in row.items() if value is None]:
            del row[key]

    return change


def picture(number: int, **values: object) -> Callable[[Document, Path], None]:
    """Changes one image's entry."""
    return lambda document, root: document["images"][number - 1].update(values)


def rows(key: str, *more: Document) -> Callable[[Document, Path], None]:
    """Adds entries to a list."""
    return lambda document, root: document[key].extend(more)


def corners_for_sides(document: Document, root: Path) -> None:
    for row in document["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x, y, x + w, y + h]


def lie(document: Document, root: Path) -> None:
    """The first picture lies on its side, and the file has its size as it lies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(root / "1.png", exif=exif)


def swap(document: Document, root: Path) -> None:
    document["images"][0] |= {"width": 30, "height": 40}


def gone(document: Document, root: Path) -> None:
    (root / "1.png").unlink()


def broken(document: Document, root: Path) -> None:
    (root / "1.png").write_bytes(b"\x89PNG no picture")


def same_name(document: Document, root: Path) -> None:
    document["categories"].append({"id": 4, "name": "cat"})
    document["annotations"][2]["category_id"] = 4


def again(document: Document, root: Path) -> None:
    document["annotations"].append(document["annotations"][0] | {"id": 50})


def as_jpeg(root: Path) -> None:
    Image.new("L", (2, 1)).save(root / "masks/train/0.jpg")
    (root / "masks/train/0.png").unlink()


class Case(NamedTuple):
    name: str
    change: Callable[[Document, Path], None]
    line: str
    done: str
    left: int = BOXES - 1  # objects
    masks: bool = False


RLE = {"size": [9, 9], "counts": [81]}
COCO = (
    Case(
        "box outside",
        the(3, bbox=[50, 2, 9, 9]),
        r"annotation 3 \(photo 1.png\): box \[50, 2, 9, 9\] lies outside 40x30",
        LEFT_OUT,
    ),
    Case(
        "box partly outside",
        the(3, bbox=[-4, 2, 9, 9]),
        r"annotation 3 \(photo 1.png\): box \[-4, 2, 9, 9\] lies partly",
        CUT,
        BOXES,
    ),
    Case("no width", the(3, bbox=[5, 5, 0, 9]), r"annotation 3 .*has no width or no height", LEFT_OUT),
    Case(
        "negative height",
        the(3, bbox=[5, 9, 9, -4]),
        r"annotation 3 .*\[5, 9, 9, -4\] has no width or no height",
        LEFT_OUT,
    ),
    Case(
        "no number", the(3, bbox=[float("nan"), 5, 9, 9]), r"annotation 3 .*has something else than numbers", LEFT_OUT
    ),
    Case("text for a number", the(3, bbox=["5", 5, 9, 9]), r"annotation 3 .*has something else than numbers", LEFT_OUT),
    Case("three numbers", the(3, bbox=[5, 9, 9]), r"annotation 3 .*has something else than numbers", LEFT_OUT),
    Case("no box", the(3, bbox=None), r"annotation 3 \(photo 1.png\): neither a box nor an outline", LEFT_OUT),
    Case(
        "corners for sides",
        corners_for_sides,
        r"t.json: \d+ of 12 boxes cannot be.*look like x1 y1 x2 y2, COCO wants x y width height",
        STOP,
        -1,
    ),
    Case(
        "empty polygon",
        the(3, segmentation=[[]]),
        r"annotation 3 \(photo 1.png\): the polygon is empty",
        NO_MASK,
        BOXES,
        True,
    ),
    Case(
        "no outline among some", the(3, segmentation=[]), r"annotation 3 .*the polygon is empty", NO_MASK, BOXES, True
    ),
    Case(
        "odd polygon",
        the(3, segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "annotation 3 .*7 numbers, which make no pairs",
        NO_MASK,
        BOXES,
    ),
    Case(
        "two corners", the(3, segmentation=[[1, 2, 3, 4]]), r"annotation 3 .*2 corners: three or more", NO_MASK, BOXES
    ),
    Case(
        "polygon of text",
        the(3, segmentation=[["a"] * 6]),
        r"annotation 3 .*something else than numbers",
        NO_MASK,
        BOXES,
    ),
    Case(
        "RLE of another size",
        the(3, segmentation=RLE),
        r"annotation 3 .*mask is of 9x9, the picture is 40x30",
        NO_MASK,
        BOXES,
    ),
    Case(
        "RLE of other pixels",
        the(3, segmentation=RLE | {"counts": [80]}),
        r"annotation 3 .*has 80 pixels, its size 9 x 9 has 81",
        NO_MASK,
        BOXES,
    ),
    Case(
        "RLE of no numbers",
        the(3, segmentation=RLE | {"counts": "\u00e9"}),
        r"annotation 3 .*no compressed numbers",
        NO_MASK,
        BOXES,
    ),
    Case(
        "unknown class",
        the(3, category_id=9),
        r"t.json: annotation 3 \(photo 1.png\): category 9 is none of the file's 2",
        LEFT_OUT,
    ),
    Case(
        "no class",
        the(3, category_id=None),
        r"annotation 3 .*category_id None is neither a number nor a name",
        LEFT_OUT,
    ),
    Case("name twice", same_name, r"annotation 3 .*category 4 has the name of category 7, 'cat'", LEFT_OUT),
    Case(
        "class id twice",
        rows("categories", {"id": 3, "name": "cow"}),
        r"category 3: the id stands twice, the second time as 'cow'",
        STOP,
        -1,
    ),
    Case("class without a name", rows("categories", {"id": 5}), r"category 5: .* has no id and name", STOP, -1),
    Case("picture missing", gone, r"t.json \(photo 1.png\): there is no such picture below", NO_PICTURE, 6),
    Case("picture broken", broken, r"t.json \(photo 1.png\): the picture cannot be read", NO_PICTURE, 6),
    Case(
        "picture twice",
        rows("images", {"id": 77, "file_name": "1.png", "width": 40, "height": 30}),
        r"t.json \(photo 1.png\): the picture stands in t.json twice",
        NO_PICTURE,
        BOXES,
    ),
    Case(
        "picture id twice",
        rows("images", {"id": 10, "file_name": "2.png", "width": 30, "height": 40}),
        r"image 10: the id stands twice, as '1.png' and '2.png'",
        NO_PICTURE,
        BOXES,
    ),
    Case(
        "picture without a name", rows("images", {"id": 77}), r"image 77: .* has no id and file_name", NO_PICTURE, BOXES
    ),
    Case(
        "unknown picture",
        the(3, image_id=99),
        r"t.json: annotation 3: image_id 99 is none of the file's images",
        LEFT_OUT,
    ),
    Case(
        "annotation that is none",
        rows("annotations", ["x"]),
        r"annotation number 13: \['x'\] is no object",
        LEFT_OUT,
        BOXES,
    ),  # type: ignore[arg-type]
    Case(
        "another size",
        picture(1, width=756, height=1008),
        r"t.json \(photo 1.png\): the file says 756x1008, the picture is 40x30",
        NO_PICTURE,
        6,
    ),
    Case("sides exchanged", swap, r"t.json \(photo 1.png\): the file says 30x40, the picture is 40x30", NO_PICTURE, 6),
    Case(
        "sides exchanged by EXIF",
        lie,
        r"t.json \(photo 1.png\): 40x30 is the size before the picture is turned",
        TURNED,
        BOXES,
    ),
    Case("box twice", again, r"annotation 50 \(photo 1.png\): the same box and class as annotation 1", KEPT, BOXES + 1),
)


def objects_of(found: AnnotatedSet) -> int:
    return sum(len(r.target) for r in found.records if isinstance(r.target, Objects))


def only(found: AnnotatedSet) -> Fault:
    """The one fault of a set, whose line is one."""
    (fault,) = found.faults.kept
    assert "\n" not in fault.line
    assert fault.line.startswith(fault.where)
    assert fault.line.endswith(fault.done)
    return fault


@pytest.mark.parametrize("case", COCO, ids=lambda case: case.name)
def test_a_broken_coco_file_is_one_line(tmp_path: Path, case: Case) -> None:
    paint(tmp_path, TRAIN)
    document = coco(TRAIN, masks=case.masks)
    case.change(document, tmp_path)
    (tmp_path / "t.json").write_text(json.dumps(document))
    found = open_annotations(str(tmp_path / "t.json"))
    if case.done != STOP:
        fault = only(found)
        assert objects_of(found) == case.left
        assert found.checked(Rules()) is found
    else:
        fault = next(fault for fault in found.faults.kept if fault.done == STOP)
        with pytest.raises(UserError, match=re.escape(fault.what)) as caught:
            found.checked(Rules())
        assert "\n" not in str(caught.value)
    assert fault.done == case.done
    assert re.search(case.line, fault.line), fault.line


def the_xml(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "Annotations" / "1.xml").write_text(text) and None


def in_xml(before: str, after: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "Annotations" / "1.xml"
        path.write_text(path.read_text().replace(before, after, 1))

    return change


def in_labels(*lines: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "labels" / "train" / "1.txt"
        path.write_text("\n".join([*path.read_text().splitlines()[: -len(lines)], *lines]))

    return change


def in_table(line: int, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        lines = (root / "boxes.csv").read_text().splitlines()
        lines[line - 1] = text
        (root / "boxes.csv").write_text("\n".join(lines))

    return change


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'
OTHERS = (
    (
        "no XML",
        write_voc,
        the_xml("<annotation>"),
        r"Annotations/1.xml: it is no XML \(no element found",
        NO_PICTURE,
        6,
    ),
    ("entities", write_voc, the_xml(BOMB), "Annotations/1.xml: it declares types or entities", NO_PICTURE, 6),
    ("another root", write_voc, the_xml("<kml/>"), "Annotations/1.xml: its first element is <kml>", NO_PICTURE, 6),
    ("no bndbox", write_voc, in_xml("bndbox>", "box>"), r"1.xml: it is no XML", NO_PICTURE, 6),
    (
        "corners swapped",
        write_voc,
        in_xml("<xmin>1<", "<xmin>30<"),
        r"1.xml: object 1 \(photo 1.png\).*no width",
        LEFT_OUT,
        11,
    ),
    (
        "no corner",
        write_voc,
        in_xml("<xmin>1</xmin>", ""),
        r"1.xml: object 1 \(photo 1.png\).*else than numbers",
        LEFT_OUT,
        11,
    ),
    (
        "VOC size",
        write_voc,
        in_xml("<width>40<", "<width>44<"),
        r"1.xml \(photo 1.png\): the file says 44x30",
        NO_PICTURE,
        6,
    ),
    (
        "unknown class",
        write_yolo,
        in_labels("2 .5 .5 .1 .1"),
        r"labels/train/1.txt: line 6 \(photo 1.png\): class 2 is none of the 2, 0 to 1",
        LEFT_OUT,
        11,
    ),
    (
        "six numbers",
        write_yolo,
        in_labels("1 .5 .5 .1 .1 .9"),
        r"1.txt: line 6 \(photo 1.png\): 6 numbers: a box has 5",
        LEFT_OUT,
        11,
    ),
    (
        "a class by name",
        write_yolo,
        in_labels("cat .5 .5 .1 .1"),
        r"1.txt: line 6 .*the class 'cat' is no number",
        LEFT_OUT,
        11,
    ),
    ("a word", write_yolo, in_labels("1 .5 x .1 .1"), r"1.txt: line 6 .*something else than numbers", LEFT_OUT, 11),
    ("no share", write_yolo, in_labels("1 1.5 .5 .1 .1"), r"1.txt: line 6 .*lies outside 40x30", LEFT_OUT, 11),
    (
        "pixels",
        write_yolo,
        in_labels(*["1 20 15 9 9"] * 3),
        r"3 of 12 boxes cannot be.*look like pixels, YOLO wants shares",
        STOP,
        -1,
    ),
    (
        "no UTF-8",
        write_yolo,
        lambda r: (r / "labels/train/1.txt").write_bytes(b"\xff\xfe"),
        r"labels/train/1.txt: .*can't decode",
        NO_PICTURE,
        6,
    ),
    (
        "labels alone",
        write_yolo,
        lambda r: (r / "images/train/1.png").unlink(),
        "labels/train/1.txt: there is no picture of this name",
        NO_PICTURE,
        6,
    ),
    (
        "no class",
        write_table,
        in_table(2, "1.png,1,1,9,9,,train"),
        r"boxes.csv: line 2 \(photo 1.png\): the class is empty",
        LEFT_OUT,
        11,
    ),
    (
        "no picture",
        write_table,
        in_table(2, ",1,1,9,9,cat,train"),
        "boxes.csv: line 2: no picture is named",
        LEFT_OUT,
        11,
    ),
    (
        "not there",
        write_table,
        in_table(2, "x.png,1,1,9,9,cat,train"),
        r"boxes.csv \(photo x.png\): there is no such picture",
        NO_PICTURE,
        11,
    ),
    (
        "sides for corners",
        write_table,
        in_table(2, "1.png,20,20,9,9,cat,train"),
        r"boxes.csv: line 2 .*no width",
        LEFT_OUT,
        11,
    ),
)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: f"{case[1].__name__[6:]}: {case[0]}")
def test_a_broken_file_of_another_form_is_one_line(tmp_path: Path, case: tuple[Any, ...]) -> None:
    _, write, change, line, done, left = case
    change(write(tmp_path, TRAIN))
    found = open_annotations(str(tmp_path))
    fault = next(f for f in found.faults.kept if f.done == STOP) if done == STOP else only(found)
    assert fault.done == done
    assert re.search(line, fault.line), fault.line
    if done == STOP:
        with pytest.raises(UserError, match=line):
            found.checked(Rules())
    else:
        assert objects_of(found) == left


def uint8(*values: int) -> np.ndarray:
    return np.asarray([values], np.uint8)


TWO = "a\nb\n"
RGB = np.zeros((2, 2, 3), np.uint8)
MAPS = (
    (
        "a value above the classes",
        [uint8(0, 1, 2)],
        TWO,
        None,
        r"masks/train/0.png: the value 2 at x=2, y=0: there are 2 classes, 0 to 1",
    ),
    (
        "0 and 255",
        [uint8(0, 255, 255)],
        TWO,
        None,
        "every pixel is 'a' or 255, which is ignored: write 0 and 1, not 0 and 255",
    ),
    ("colors without a table", [RGB], TWO, None, "masks/train/0.png: the map is colored.*write a classes.csv"),
    (
        "a color of no class",
        [RGB],
        "a,1,1,1\nb,2,2,2\n",
        None,
        "masks/train/0.png: the color 0, 0, 0 at x=0, y=0 is of no class",
    ),
    (
        "another size",
        [uint8(0, 1)],
        TWO,
        lambda r: Image.new("L", (3, 3)).save(r / "masks/train/0.png"),
        r"masks/train/0.png \(photo images/train/0.jpg\): the map is 3x3, the picture is 2x1",
    ),
    ("a JPEG", [uint8(0, 1)], TWO, as_jpeg, "masks/train/0.jpg: a JPEG does not keep values exactly"),
)


@pytest.mark.parametrize("case", MAPS, ids=lambda case: case[0])
def test_a_broken_class_map_stops_with_file_and_value(tmp_path: Path, case: tuple[Any, ...]) -> None:
    from anyres.runs.check import check

    _, values, names, change, line = case
    write_maps(tmp_path, values, names=names)
    if change:
        change(tmp_path)
    found = check(str(tmp_path), out=tmp_path / "out")
    assert found.task == "segment"
    assert found.stop is not None
    assert re.search(line, found.stop), found.stop
    assert only_line(found.faults).done == STOP


def only_line(faults: Faults) -> Fault:
    (fault,) = faults.kept
    assert "\n" not in fault.line
    return fault


def test_a_missing_map_or_picture_is_left_out(tmp_path: Path) -> None:
    write_maps(tmp_path, [uint8(0, 1)] * 3, names=TWO)
    (tmp_path / "masks/train/0.png").unlink()
    (tmp_path / "images/train/1.jpg").unlink()
    found = open_annotations(str(tmp_path))
    assert [fault.line for fault in found.faults.kept] == [
        "images/train/0.jpg: there is no map of this name: picture left out",
        "masks/train/1.png: there is no picture of this name: picture left out",
    ]
    assert len(found.checked(Rules()).parts["train"]) == 1


def test_pictures_without_objects_are_negatives_or_dropped(tmp_path: Path) -> None:
    write_voc(tmp_path, [*TRAIN, Drawn("4.png", 20, 20, ())])
    found = open_annotations(str(tmp_path))
    assert len(found.parts["train"]) == 3
    assert found.notes == ("1 pictures without an object: kept as negatives",)
    assert not found.faults.counts
    dropped = open_annotations(str(tmp_path), rules=Rules(drop_empty=True))
    assert len(dropped.parts["train"]) == 2
    assert dropped.notes == ("1 pictures without an object: left out",)


def test_where_masks_are_needed_an_object_without_one_is_left_out(tmp_path: Path) -> None:
    paint(tmp_path, TRAIN)
    document = coco(TRAIN, masks=True)
    document["annotations"][2]["segmentation"] = [[1, 2]]
    (tmp_path / "t.json").write_text(json.dumps(document))
    found = open_annotations(str(tmp_path), rules=Rules(needs_masks=True))
    assert objects_of(found) == 11
    assert only(found).line.startswith("t.json: annotation 3 (photo 1.png): ")


def test_boxes_alone_need_no_outline_said(tmp_path: Path) -> None:
    paint(tmp_path, TRAIN)
    document = coco(TRAIN)
    for annotation, outline in zip(document["annotations"], [[], [[]], None] * 4, strict=True):
        annotation["segmentation"] = outline
    (tmp_path / "t.json").write_text(json.dumps(document))
    assert not open_annotations(str(tmp_path)).faults.counts


def test_a_hundredth_may_be_faulty_and_ten_always() -> None:
    faults = Faults()
    for number in range(10):
        faults.add("box outside", f"a.json: annotation {number}", "it is", LEFT_OUT)
    assert too_many(faults, 12, 3, 0.01) is None
    assert "10 of 12 annotations are faulty, more than 0 %, as a.json: annotation 0" in str(
        too_many(faults, 12, 3, 0.0)
    )
    faults.add("class unknown", "a.json: annotation 11", "category 9", LEFT_OUT, 4)
    assert "14 of 20 annotations are faulty, more than 1 %" in str(too_many(faults, 20, 3, 0.01))
    assert too_many(faults, 20, 3, 0.8) is None
    assert too_many(faults, 1400, 3, 0.01) is None
    with pytest.raises(UserError, match="max_faulty 2 is a share: 0 to 1"):
        Rules(max_faulty=2.0)


def test_many_faults_are_counted_and_a_thousand_kept() -> None:
    faults = Faults()
    for number in range(1500):
        faults.add("box outside", str(number), "it is", LEFT_OUT)
    assert (faults.done(LEFT_OUT), len(faults.kept)) == (1500, 1000)


def test_unusable_outlines_stop_nothing_where_boxes_will_do() -> None:
    faults = Faults()
    faults.add("mask unusable", "a.json: annotation 1", "the polygon is empty", NO_MASK, 50)
    assert too_many(faults, 60, 3, 0.01) is None


def test_a_pipe_with_the_name_of_annotations_is_no_file(tmp_path: Path) -> None:
    write_voc(tmp_path, TRAIN)
    for name in ("a.json", "data.yaml", "boxes.csv"):
        os.mkfifo(tmp_path / name)
    assert open_annotations(str(tmp_path)).form == "VOC xml"


FILES = (
    ("t.json", '{"images": [], "annotations": [] ', r"t.json is damaged \(Expecting ',' delimiter"),
    ("t.json", '{"images": [], "annotations": []}', "t.json has no 'categories': a COCO file holds the lists"),
    ("t.json", '{"images": 3, "annotations": [], "categories": []}', "holds no list under 'images'"),
    ("t.json", '{"images": [], "annotations": [], "categories": []}', "t.json has no category"),
    ("t.json", '[{"images": 1, "annotations": 2}]', "t.json is a list, as results are: give the file that lists"),
    ("data.yaml", "names: [a, b]\ntrain: nowhere", "data.yaml: train is 'nowhere', and there is no"),
    ("data.yaml", "names: {1: a}\ntrain: .", "names must number the classes 0 to 0"),
    ("data.yaml", "names: [a, a]\ntrain: .", "the class 'a' stands twice in names"),
    ("data.yaml", "names: [a]\nnc: 3\ntrain: .", "nc is 3, and names has 1"),
    ("data.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\ntrain: .", "has no 'names' that is a list"),
    ("data.yaml", "names: [a]\ntrain: [[1]]", "train is no text: give a folder"),
    ("data.yaml", "names: 3\ntrain: .", "has no 'names' that is a list of classes"),
    ("data.yaml", "names: [a\ntrain: .", "is no YAML"),
    ("t.csv", "image_path,xmin,ymin,xmax,ymax,label\n", "t.csv has no box with a class"),
    ("t.csv", 'image_path,xmin,ymin,xmax,ymax,label\n"a,1,1,2,2,x\n', "t.csv:1: no row of cells"),
    ("t.csv", "a.png,1,2,3,4\n", "no annotations of a form that is known"),
)


@pytest.mark.parametrize("case", FILES, ids=lambda case: case[2])
def test_a_file_that_cannot_be_read_at_all_is_one_line(tmp_path: Path, case: tuple[str, str, str]) -> None:
    name, text, line = case
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=line) as caught:
        open_annotations(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_xml_that_asks_for_all_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="declares types or entities"):
        parse_xml(BOMB.encode("utf-16"))
    assert parse_xml(b"<a>&lt;</a>").text == "<"
