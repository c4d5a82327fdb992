"""Every form of annotations gives the same objects, whatever stands in it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from tests.data.drawn import (
    CLASSES,
    PICTURES,
    WRITERS,
    Box,
    Drawn,
    coco,
    paint,
    square,
    voc,
    write_coco,
    write_maps,
    yolo,
)

from anyres.config import UserError
from anyres.data.annotations.annotated import AnnotatedSet, Rules
from anyres.data.annotations.builtin_sets import LUNGS, TREES, open_builtin, patient
from anyres.data.annotations.forms import open_annotations, recognized
from anyres.data.annotations.masks import class_map
from anyres.data.annotations.pictures import look
from anyres.data.annotations.shapes import NoShape, runs, turned_pixels, turned_points
from anyres.data.drawn_sources import drawn_source
from anyres.data.sources import Source
from anyres.flow import IGNORED, MapFile, Objects, Polygons, Record, Rle, Size


def by_picture(found: AnnotatedSet) -> dict[tuple[str, str], list[tuple[str, tuple[float, ...]]]]:
    """(split, bare name) -> class names and corners."""
    named = {}
    for split, records in found.parts.items():
        for record in records:
            target = record.target
            assert isinstance(target, Objects)
            rows = zip(target.classes.tolist(), target.boxes.tolist(), strict=True)
            named[split, Path(record.name).name] = [(found.classes[c], tuple(round(x, 3) for x in b)) for c, b in rows]
    return named


def truth(pictures: tuple[Drawn, ...]) -> dict[tuple[str, str], list[tuple[str, tuple[float, ...]]]]:
    return {(p.split, p.name): [(b.label, tuple(map(float, b[1:]))) for b in p.boxes] for p in pictures}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_objects(tmp_path: Path, form: str) -> None:
    found = open_annotations(str(WRITERS[form](tmp_path)))
    assert by_picture(found) == truth(PICTURES)
    assert found.classes == CLASSES
    assert found.form == ("COCO json" if form == "Roboflow" else form)
    assert not found.faults.counts
    assert found.checked(Rules()) is found
    assert all(isinstance(record.source, Path) for record in found.records)
    assert [r.target.of_size for r in found.records] == [Size(30, 40), Size(40, 30), Size(33, 33)]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Drawn, ...]:
    """One to three pictures with up to four boxes, no two alike, of which train has one and both classes."""
    made = []
    for number in range(draw(st.integers(1, 3))):
        w, h = draw(st.integers(4, 60)), draw(st.integers(4, 60))
        boxes: dict[tuple[int, ...], Box] = {}
        for _ in range(draw(st.integers(0, 4))):
            x1, y1 = draw(st.integers(0, w - 1)), draw(st.integers(0, h - 1))
            x2, y2 = draw(st.integers(x1 + 1, w)), draw(st.integers(y1 + 1, h))
            boxes[x1, y1, x2, y2] = Box(draw(st.sampled_from(CLASSES)), x1, y1, x2, y2)
        made.append(Drawn(f"p {number}.png", w, h, tuple(boxes.values()), "train" if number < 2 else "val"))
    first = made[0]
    both = (Box("cat", 0, 0, first.w, first.h), Box("dog", 0, 0, 1, 1))
    return (first._replace(boxes=both + tuple(b for b in first.boxes if b[1:] not in {c[1:] for c in both})), *made[1:])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=pictures())
def test_what_is_written_is_read_in_every_form(made: tuple[Drawn, ...]) -> None:
    for form, write in WRITERS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = open_annotations(str(write(Path(folder), made)))
            assert by_picture(found) == truth(made), form


def test_a_file_is_named_where_two_forms_fit(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "boxes.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\n1.png,1,1,5,5,cat\n")
    with pytest.raises(UserError, match=r"fits 2 forms, COCO json \(instances_train2017.json\) and CSV table"):
        open_annotations(str(tmp_path))
    assert open_annotations(str(tmp_path / "boxes.csv")).form == "CSV table"
    assert len(open_annotations(str(tmp_path / "annotations/instances_val2017.json")).parts["val"]) == 1
    for name in ("images", "masks"):
        (tmp_path / name).mkdir(exist_ok=True)
    Image.new("L", (40, 30)).save(tmp_path / "masks" / "1.png")
    (tmp_path / "boxes.csv").unlink()
    with pytest.raises(UserError, match=r"fits 2 forms.*: give --task"):
        open_annotations(str(tmp_path))
    assert open_annotations(str(tmp_path), "boxes").form == "COCO json"


def test_layouts_of_roboflow(tmp_path: Path) -> None:
    """Its YOLO, VOC and CSV have a folder for each split; data.yaml counts from a folder that is not there."""
    parts = (("train", PICTURES[:2]), ("valid", PICTURES[2:]))
    for part, some in parts:
        paint(tmp_path / "yolo" / part / "images", some)
        paint(tmp_path / "voc" / part, some)
        paint(tmp_path / "csv" / part, some)
        (tmp_path / "yolo" / part / "labels").mkdir()
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for picture in some:
            stem = Path(picture.name).stem
            (tmp_path / "yolo" / part / "labels" / f"{stem}.txt").write_text(yolo(picture))
            (tmp_path / "voc" / part / f"{stem}.xml").write_text(voc(picture))
            head = f"{picture.name},{picture.w},{picture.h}"
            rows += [f"{head},{b.label},{b.x1},{b.y1},{b.x2},{b.y2}" for b in picture.boxes]
        (tmp_path / "csv" / part / "_annotations.csv").write_text("\n".join(rows))
    sheet = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n"
    (tmp_path / "yolo" / "data.yaml").write_text(sheet)
    for form in ("yolo", "voc", "csv"):
        found = open_annotations(str(tmp_path / form))
        assert by_picture(found) == truth(PICTURES), form
        assert not found.faults.counts


def test_lists_of_voc_say_what_is_in_the_set(tmp_path: Path) -> None:
    root = WRITERS["VOC xml"](tmp_path)
    (root / "ImageSets/Main/train.txt").write_text("1  1\n")
    found = open_annotations(str(root))
    assert {split: len(records) for split, records in found.parts.items()} == {"train": 1, "val": 1}
    assert found.notes == ("1 files, as 2.xml, are in no list of a split: left out",)
    (root / "SegmentationClass").mkdir()
    (root / "ImageSets/Segmentation").mkdir()
    (root / "ImageSets/Segmentation/val.txt").write_text("3\n")
    Image.fromarray(np.full((33, 33), 1, np.uint8)).save(root / "SegmentationClass" / "3.png")
    maps = open_annotations(str(root), "maps")
    assert list(maps.parts) == ["val"]
    assert not maps.faults.counts


def test_a_folder_of_classes_has_no_form(folder: Path) -> None:
    assert recognized(str(folder)) == []
    with pytest.raises(UserError, match="no annotations of a form that is known: COCO json"):
        open_annotations(str(folder))


def test_outlines_and_crowds_come_along(tmp_path: Path) -> None:
    paint(tmp_path, PICTURES[:1])
    document = coco(PICTURES[:1], masks=True)
    document["annotations"][0] |= {"segmentation": {"size": [30, 40], "counts": [31, 2, 30 * 40 - 33]}, "iscrowd": 1}
    (tmp_path / "a.json").write_text(json.dumps(document))
    (record,) = open_annotations(str(tmp_path)).parts["train"]
    target = record.target
    assert isinstance(target, Objects)
    assert target.crowd.tolist() == [True, *[False] * 5]
    assert isinstance(target.shapes[0], Rle)
    assert np.argwhere(target.shapes[0].mask()).tolist() == [[1, 1], [2, 1]]
    assert isinstance(target.shapes[1], Polygons)
    assert target.shapes[1].plain() == (tuple(map(float, square(PICTURES[0].boxes[1]))),)


def test_yolo_outlines_are_scaled_and_have_a_box(tmp_path: Path) -> None:
    root = WRITERS["YOLO txt"](tmp_path, PICTURES[:1])
    (root / "labels/train/1.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    target = open_annotations(str(root)).parts["train"][0].target
    assert isinstance(target, Objects)
    np.testing.assert_allclose(target.boxes, [[4, 3, 20, 15]], rtol=1e-6)
    assert isinstance(target.shapes[0], Polygons)
    np.testing.assert_allclose(target.shapes[0].parts[0], [[4, 3], [20, 3], [20, 15]], rtol=1e-6)


@given(mask=st.integers(1, 9).flatmap(lambda w: st.lists(st.lists(st.booleans(), min_size=w, max_size=w), min_size=1)))
@settings(max_examples=60, deadline=None)
def test_runs_keep_every_mask(mask: list[list[bool]]) -> None:
    pixels = np.asarray(mask)
    coded = Rle.of(pixels)
    assert (coded.mask() == pixels).all()
    assert coded.counts.sum() == pixels.size
    again = runs({"size": list(pixels.shape), "counts": compressed(coded.counts.tolist())})
    assert again.plain() == coded.plain()


def compressed(counts: list[int]) -> str:
    """COCO's text for counts."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
    return text


def test_compressed_runs_as_coco_writes_them() -> None:
    # the worked example of the format: runs that grow, shrink and need two letters
    assert compressed([6, 1, 40, 4, 5, 4, 5, 4, 21]) == "61X13mN000`0"
    assert runs({"size": [9, 10], "counts": "61X13mN000`0"}).counts.tolist() == [6, 1, 40, 4, 5, 4, 5, 4, 21]
    for broken in ("~", "p", "61X13mN000`", "Q" * 30 + "\u00e9"):
        with pytest.raises(NoShape):
            runs({"size": [9, 10], "counts": broken})


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_what_is_drawn_on_a_lying_picture_is_turned_with_it(tmp_path: Path, orientation: int) -> None:
    box = Box("cat", 3, 4, 14, 12)
    lying = Image.new("L", (40, 30))
    ImageDraw.Draw(lying).rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), fill=255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying.save(tmp_path / "1.png", exif=exif)
    assert look(tmp_path / "1.png") == (Size(40, 30), orientation)
    document = coco([Drawn("1.png", 40, 30, (box,))], masks=True)
    document["annotations"].append(document["annotations"][0] | {"id": 9, "segmentation": None, "bbox": [1, 1, 2, 3]})
    document["annotations"][1]["segmentation"] = {"size": [30, 40], "counts": Rle.of(np.array(lying)).counts.tolist()}
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = open_annotations(str(tmp_path))
    assert [fault.done for fault in found.faults.kept] == ["turned as the picture is"]
    target = found.parts["train"][0].target
    assert isinstance(target, Objects)
    with Image.open(tmp_path / "1.png") as image:
        upright = np.array(ImageOps.exif_transpose(image))
    ys, xs = np.nonzero(upright)
    assert target.boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert target.of_size == Size(*upright.shape)
    assert isinstance(target.shapes[1], Rle)
    assert (target.shapes[1].mask() == (upright > 0)).all()
    assert isinstance(target.shapes[0], Polygons)
    (corners,) = target.shapes[0].parts
    assert [*corners.min(0).tolist(), *corners.max(0).tolist()] == target.boxes[0].tolist()
    assert (turned_pixels(np.array(lying), orientation) == upright).all()
    assert turned_points(np.float32([[0, 0]]), Size(30, 40), orientation).min() >= 0


def test_maps_of_indices_palettes_and_colors_are_the_same(tmp_path: Path) -> None:
    indices = np.random.default_rng(0).integers(0, 3, (12, 17)).astype(np.uint8)
    indices[0, 0] = IGNORED
    palette = np.where(indices == IGNORED, 2, indices).astype(np.uint8)
    colors = np.eye(3, dtype=np.uint8)[palette] * 255
    names = "name,r,g,b\na,255,0,0\nb,0,255,0\nc,0,0,255\n"
    made = {
        "index": write_maps(tmp_path / "index", [indices], names="a\nb\nc\n"),
        "palette": write_maps(tmp_path / "palette", [palette], "P", names="a\nb\nc\n"),
        "colors": write_maps(tmp_path / "colors", [colors], names=names),
    }
    for form, root in made.items():
        found = open_annotations(str(root))
        assert (found.kind, found.classes) == ("maps", ("a", "b", "c"))
        (record,) = found.checked(Rules()).parts["train"]
        assert isinstance(record.target, MapFile)
        wanted = indices if form == "index" else palette
        assert (class_map(record.target, 3) == wanted).all(), form
    unnamed = open_annotations(str(write_maps(tmp_path / "unnamed", [palette])))
    assert unnamed.classes == ("0", "1", "2")
    assert "called by the values, 0 to 2" in unnamed.notes[0]


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path: Path) -> None:
    for part in ("training", "validation"):
        for folder, ending in (("images", "jpg"), ("annotations", "png")):
            (tmp_path / folder / part).mkdir(parents=True)
            Image.new("L", (5, 4), 2).save(tmp_path / folder / part / f"x_{part}.{ending}")
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0\t1\t1\t1\twall\n2\t0\t1\t1\t1\tsky\n"
    )
    found = open_annotations(str(tmp_path))
    assert (found.form, found.classes) == ("ADE20K layout", ("wall", "sky"))
    assert {split: len(records) for split, records in found.parts.items()} == {"train": 1, "val": 1}
    target = found.parts["train"][0].target
    assert isinstance(target, MapFile)
    assert (class_map(target, 2) == 1).all()
    Image.new("L", (5, 4), 0).save(tmp_path / "annotations/training/x_training.png")
    assert (class_map(target, 2) == IGNORED).all()


def test_a_fingerprint_depends_on_what_is_drawn(tmp_path: Path) -> None:
    found = open_annotations(str(write_coco(tmp_path)))
    records = found.parts["train"]
    source = Source("set", found.classes, records, (), "train")
    again = Source("set", found.classes, tuple(open_annotations(str(tmp_path)).parts["train"]), (), "train")
    assert source.fingerprint() == again.fingerprint()
    first = records[0].target
    assert isinstance(first, Objects)
    moved = Objects(first.boxes + np.float32(1), first.classes, first.shapes, first.crowd, first.of_size)
    assert moved != first
    assert len({moved, first}) == 2
    other = Source("set", found.classes, (Record(b"", moved, records[0].name), *records[1:]), (), "train")
    assert other.fingerprint() != source.fingerprint()


def test_val_is_held_out_by_name_and_rarest_class(tmp_path: Path) -> None:
    some = tuple(Drawn(f"{i}.png", 20, 20, (Box("cat" if i else "dog", 1, 1, 9, 9),)) for i in range(11))
    found = open_annotations(str(write_coco(tmp_path / "a", some)))
    train, val, test = (drawn_source(found, split) for split in ("train", "val", "test"))
    assert [len(source.records) for source in (train, val, test)] == [9, 2, 2]
    assert not {r.name for r in train.records} & {r.name for r in val.records}
    assert "no val split: 2 of 11 images held out of train for it" in val.notes
    assert "images/0.png" in {r.name for r in train.records}  # the only dog is learned from
    moved = open_annotations(str(write_coco(tmp_path / "b" / "c", some)))
    assert drawn_source(moved, "val").fingerprint() == val.fingerprint()
    assert val.labelling == "drawn"
    with pytest.raises(UserError, match="has no image for val"):
        drawn_source(open_annotations(str(write_coco(tmp_path / "one", some[:1]))), "val")


@pytest.mark.builtin
@pytest.mark.skipif(not LUNGS.path.is_file(), reason="lungs are not in the cache: `anyres check lungs` fetches them")
def test_lungs_are_split_by_patient_and_have_two_of_each() -> None:
    found = open_builtin("lungs", None, Rules())
    assert {split: len(records) for split, records in found.parts.items()} == {"train": 182, "val": 59, "test": 58}
    assert found.annotations == 598
    whom = {split: {patient(r.name.split()[1]) for r in records} for split, records in found.parts.items()}
    assert not whom["train"] & whom["val"] | whom["train"] & whom["test"] | whom["val"] & whom["test"]
    assert sum(map(len, whom.values())) == 291
    for record in found.parts["test"][:5]:
        target = record.target
        assert isinstance(target, Objects)
        left, right = target.boxes.tolist()
        assert left[0] < right[0]
        assert all(isinstance(shape, Rle) and shape.mask().any() for shape in target.shapes)


@pytest.mark.builtin
@pytest.mark.skipif(not TREES.path.is_file(), reason="trees are not in the cache: `anyres check trees` fetches them")
def test_trees_are_951_boxes() -> None:
    found = open_builtin("trees", None, Rules())
    assert [len(r.target) for r in found.records if isinstance(r.target, Objects)] == [574, 279, 61, 37]
    assert not found.faults.counts
    with pytest.raises(UserError, match="boxes alone"):
        open_builtin("trees", "maps", Rules())
