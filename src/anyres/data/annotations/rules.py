"""The rules: what is done about a box outside its picture, an unknown class, a size that is not the picture's.

The same for every form. Whatever is left out or changed is a ``Fault`` with file, annotation and picture.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from anyres.data.annotations.annotated import AnnotatedSet, Rules
from anyres.data.annotations.faults import CUT, KEPT, LEFT_OUT, NO_MASK, NO_PICTURE, STOP, TURNED, Faults
from anyres.data.annotations.pictures import LYING, Seen, look
from anyres.data.annotations.raw import Corners, RawObject, RawPicture, RawSet, path_below
from anyres.data.annotations.shapes import box_of, turned, turned_points
from anyres.data.raw_dataset import cut, readable_text
from anyres.flow import Objects, Polygons, Record, Rle, Shape, Size

NOTED = 2.0
"""Pixels by which a box may leave its picture without a word."""
WRONG_SHARE, WRONG_LEAST = 0.2, 2
"""Share of a file's boxes, and their number, from which on wrong sides are no accident but another convention."""
SAME = 0.99
"""Intersection over union of two boxes of one class that are noted as drawn twice."""

_ROWS = 256  # of the table of overlaps that is made at a time

_Box = tuple[float, float, float, float]
_MEANT = {
    "xywh": "these look like x1 y1 x2 y2, COCO wants x y width height",
    "xyxy": "these look like x y width height, the table wants xmin ymin xmax ymax",
    "voc": "these look like x y width height, VOC wants xmin ymin xmax ymax",
    "shares": "these look like pixels, YOLO wants shares of the picture's width and height",
}


def wide_high(size: Size) -> str:
    """A size as annotation files say it: width x height."""
    return f"{size.width}x{size.height}"


def assemble(name: str, raw: RawSet, rules: Rules) -> AnnotatedSet:
    """Check every annotation against its picture, and make what a task trains on."""
    faults, work = Faults(), _Work(raw.corners, rules, name if raw.corners in ("voc", "shares") else "")
    faults.extend(raw.faults)
    parts: dict[str, list[Record]] = defaultdict(list)
    seen: dict[object, RawPicture] = {}
    annotations, pictures = faults.done(LEFT_OUT), len(raw.pictures) + faults.done(NO_PICTURE)
    empty = 0
    masks_meant = any(item.shape is not None for picture in raw.pictures for item in picture.objects)
    for picture in raw.pictures:
        found = _picture(picture, seen, faults)
        if found is None:
            continue
        annotations += len(picture.objects)
        lost = faults.done(LEFT_OUT)
        objects = work.objects(picture, found, masks_meant, faults)
        empty += not len(objects)
        all_lost = not len(objects) and faults.done(LEFT_OUT) > lost
        if all_lost:
            what = "none of its annotations can be used, so it is no picture without objects either"
            faults.add("nothing left", _place(picture), what, NO_PICTURE)
        elif len(objects) or not rules.drop_empty:
            assert not isinstance(picture.source, str)
            known = path_below(picture.source, raw.root) if isinstance(picture.source, Path) else picture.name
            parts[picture.split].append(Record(picture.source, objects, readable_text(known)))
    work.stop_for_wrong_corners(faults)
    made = {split: tuple(records) for split, records in parts.items()}
    notes = list(raw.notes)
    if empty:
        notes.append(f"{empty} pictures without an object: {'left out' if rules.drop_empty else 'kept as negatives'}")
    return AnnotatedSet(name, raw.form, "boxes", raw.classes, made, faults, annotations, pictures, empty, tuple(notes))


def _place(picture: RawPicture, item: RawObject | None = None) -> str:
    """File, annotation and picture, as a line begins."""
    named = f" (photo {cut(readable_text(picture.name), 100)})"
    return f"{picture.file}: {item.where}{named}" if item is not None else f"{picture.file}{named}"


def _picture(picture: RawPicture, seen: dict[object, RawPicture], faults: Faults) -> Seen | None:
    """The picture's size, if it is there, once, and as large as its file of annotations says; else a fault."""
    if isinstance(picture.source, str):
        faults.add("picture missing", _place(picture), picture.source, NO_PICTURE)
        return None
    key = picture.source if isinstance(picture.source, Path) else (picture.file, picture.name)
    before = seen.setdefault(key, picture)
    if before is not picture:
        where = f"{picture.file} twice" if before.file == picture.file else f"{before.file} too"
        faults.add("picture twice", _place(picture), f"the picture stands in {where}", NO_PICTURE)
        return None
    try:
        found = look(picture.source)
    except ValueError as error:
        faults.add("picture unreadable", _place(picture), f"the picture cannot be read ({error})", NO_PICTURE)
        return None
    declared = picture.declared
    if declared is None or declared == found.size:
        return Seen(found.size, 1)
    if found.orientation in LYING and declared == Size(found.size.width, found.size.height):
        what = f"{wide_high(declared)} is the size before the picture is turned by its EXIF orientation"
        faults.add("turned by EXIF", _place(picture), what, TURNED)
        return found
    what = f"the file says {wide_high(declared)}, the picture is {wide_high(found.size)} (width x height)"
    faults.add("another size", _place(picture), what, NO_PICTURE)
    return None


@dataclass
class _Work:
    """Annotations -> objects of one set; counts the boxes of each file whose sides cannot be right."""

    corners: Corners
    rules: Rules
    whole: str  # names the set, where each picture has a file by itself
    _boxes: Counter[str] = field(default_factory=Counter)
    _wrong: Counter[str] = field(default_factory=Counter)
    _other: Counter[str] = field(default_factory=Counter)  # of those, right by another convention
    _alike: Counter[str] = field(default_factory=Counter)  # of all, right by another convention
    _first: dict[str, tuple[str, str]] = field(default_factory=dict)

    def objects(self, picture: RawPicture, found: Seen, masks_meant: bool, faults: Faults) -> Objects:
        """What of a picture's annotations can be used, upright."""
        lying = Size(found.size.width, found.size.height) if found.orientation != 1 else found.size
        boxes: list[_Box] = []
        kept: list[tuple[RawObject, Shape]] = []
        for item in picture.objects:
            shape = self._shape(picture, item, lying, masks_meant, faults)
            if shape is None and self.rules.needs_masks:
                faults.add("mask missing", _place(picture, item), "no usable mask, and one is needed", LEFT_OUT)
                continue
            box = self._box(picture, item, shape, lying, faults)
            if box is not None:
                boxes.append(box)
                kept.append((item, shape))
        corners = np.asarray(boxes, np.float32).reshape(-1, 4)
        shapes = tuple(shape for _, shape in kept)
        if found.orientation != 1:
            corners = _turned_boxes(corners, lying, found.orientation)
            shapes = tuple(turned(shape, lying, found.orientation) for shape in shapes)
        classes = np.asarray([item.class_index for item, _ in kept], np.int64)
        self._note_twice(picture, [item for item, _ in kept], corners, classes, faults)
        crowd = np.asarray([item.crowd for item, _ in kept], np.bool_)
        return Objects(corners, classes, shapes, crowd, found.size)

    def _shape(self, picture: RawPicture, item: RawObject, size: Size, masks_meant: bool, faults: Faults) -> Shape:
        """The outline in pixels of the lying picture, or a fault where one was meant and cannot be used."""
        shape, problem = item.shape, item.problem
        if isinstance(shape, Rle) and shape.of_size != size:
            problem = f"the RLE mask is of {wide_high(shape.of_size)}, the picture is {wide_high(size)}"
        if problem and (masks_meant or "is empty" not in problem):
            if not self.rules.needs_masks:
                faults.add("mask unusable", _place(picture, item), problem, NO_MASK)
            return None
        if problem:
            return None
        if isinstance(shape, Polygons):
            scale = (size.width, size.height) if self.corners == "shares" else (1, 1)
            sides = np.asarray([size.width, size.height], np.float32)
            scaled = (part * np.asarray(scale, np.float32) for part in shape.parts)
            return Polygons(tuple(np.clip(part, np.float32(0), sides) for part in scaled))
        return shape

    def _box(self, picture: RawPicture, item: RawObject, shape: Shape, size: Size, faults: Faults) -> _Box | None:
        """The box within the lying picture, or a fault and None."""
        numbers = item.box
        box = box_of(shape) if numbers is None else corners_of(numbers, self.corners, size)
        place = _place(picture, item)
        if box is None:
            faults.add("box missing", place, "neither a box nor an outline", LEFT_OUT)
            return None
        told = f"box [{', '.join(f'{number:g}' for number in (numbers or box))}]"
        self._boxes[self.whole or picture.file] += 1
        self._alike[self.whole or picture.file] += numbers is not None and _fits_otherwise(numbers, self.corners, size)
        if not all(map(math.isfinite, box)):
            self._is_wrong(picture, place, told)
            faults.add("no number", place, f"{told} has something else than numbers", LEFT_OUT)
            return None
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            self._is_wrong(picture, place, told, numbers, size)
            faults.add("no area", place, f"{told} has no width or no height", LEFT_OUT)
            return None
        inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(size.width)), min(y2, float(size.height))
        beyond = max(abs(one - other) for one, other in zip(box, inside, strict=True))
        if beyond > NOTED:
            self._is_wrong(picture, place, told, numbers, size, alone=False)
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            faults.add("box outside", place, f"{told} lies outside {wide_high(size)}", LEFT_OUT)
            return None
        if beyond > NOTED:
            faults.add("box partly outside", place, f"{told} lies partly outside {wide_high(size)}", CUT)
        return inside

    def _is_wrong(
        self,
        picture: RawPicture,
        place: str,
        told: str,
        numbers: _Box | None = None,
        size: Size | None = None,
        alone: bool = True,
    ) -> None:
        """Count a box whose sides cannot be right; ``alone``: whatever else it may be read as."""
        fits = numbers is not None and size is not None and _fits_otherwise(numbers, self.corners, size)
        if alone or fits:
            file = self.whole or picture.file
            self._wrong[file] += 1
            self._other[file] += fits
            self._first.setdefault(file, (place, told))

    def stop_for_wrong_corners(self, faults: Faults) -> None:
        """A fault that stops for each file of which too many boxes have wrong sides."""
        for file, wrong in self._wrong.items():
            n = self._boxes[file]
            all_alike = self.corners == "xywh" and self._alike[file] == n
            if wrong < WRONG_LEAST or (wrong <= WRONG_SHARE * n and not all_alike):
                continue
            place, told = self._first[file]
            meant = _MEANT[self.corners] if 2 * self._other[file] > wrong else "they have no area or are no numbers"
            faults.add("wrong corners", file, f"{wrong} of {n} boxes cannot be, as {told} of {place}: {meant}", STOP)

    def _note_twice(
        self,
        picture: RawPicture,
        items: Sequence[RawObject],
        boxes: Float32[np.ndarray, "n 4"],
        classes: np.ndarray,
        faults: Faults,
    ) -> None:
        """A note for each box that is drawn a second time."""
        for i, j in _same(boxes):
            if classes[i] == classes[j] and not (items[i].crowd or items[j].crowd):
                what = f"the same box and class as {items[i].where}"
                faults.add("box twice", _place(picture, items[j]), what, KEPT)


def corners_of(numbers: _Box, corners: Corners, size: Size) -> _Box:
    """Four numbers as a file has them -> x1 y1 x2 y2 in pixels."""
    a, b, c, d = numbers
    if corners == "xywh":
        return a, b, a + c, b + d
    if corners == "voc":  # pixels count from 1, and the last one belongs to the box
        return a - 1, b - 1, c, d
    if corners == "shares":
        w, h = size.width, size.height
        return (a - c / 2) * w, (b - d / 2) * h, (a + c / 2) * w, (b + d / 2) * h
    return numbers


def _fits_otherwise(numbers: _Box, corners: Corners, size: Size) -> bool:
    """Whether the four numbers make a box within the picture by the convention that they are mistaken for."""
    a, b, c, d = numbers
    if corners == "xywh":
        box = numbers
    elif corners == "shares":
        return max(numbers) > 2 and min(numbers) >= 0
    else:
        box = a, b, a + c, b + d
    x1, y1, x2, y2 = box
    return -NOTED <= x1 < x2 <= size.width + NOTED and -NOTED <= y1 < y2 <= size.height + NOTED


def _turned_boxes(boxes: Float32[np.ndarray, "n 4"], size: Size, orientation: int) -> Float32[np.ndarray, "n 4"]:
    """Boxes of a lying picture -> of the upright one."""
    one, other = (turned_points(boxes[:, columns], size, orientation) for columns in ([0, 1], [2, 3]))
    return np.concatenate([np.minimum(one, other), np.maximum(one, other)], 1)


def _same(boxes: Float32[np.ndarray, "n 4"]) -> list[tuple[int, int]]:
    """Pairs (i < j) of boxes that lie on each other."""
    found: list[tuple[int, int]] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for start in range(0, len(boxes), _ROWS):
        some = boxes[start : start + _ROWS, None]  # (rows, 1, 4)
        wide = np.minimum(some[..., 2], boxes[:, 2]) - np.maximum(some[..., 0], boxes[:, 0])
        high = np.minimum(some[..., 3], boxes[:, 3]) - np.maximum(some[..., 1], boxes[:, 1])
        shared = wide.clip(min=0) * high.clip(min=0)
        is_same = shared > SAME * (area[start : start + _ROWS, None] + area - shared)
        found += [(start + i, j) for i, j in np.argwhere(is_same).tolist() if start + i < j]
    return found
