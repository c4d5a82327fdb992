"""COCO's json: images, categories, annotations with ``[x, y, width, height]``, polygons or RLE, crowds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyres.config import UserError
from anyres.data.annotations.faults import LEFT_OUT, NO_PICTURE, STOP, Fault
from anyres.data.annotations.pictures import Pictures
from anyres.data.annotations.raw import RawObject, RawPicture, RawSet, path_below
from anyres.data.annotations.shapes import NoShape, is_number, polygons, runs
from anyres.data.raw_dataset import cut, one_form, shorten
from anyres.flow import Shape, Size
from anyres.storage import read_json

MOST_BYTES = 2**32
"""Of one file; COCO's own largest has 0.5 GB."""
_KEYS = ("images", "categories", "annotations")

Id = int | str


def read_coco(files: Sequence[tuple[Path, str]], root: Path) -> RawSet:
    """Files of annotations, each with its split; pictures lie anywhere below ``root``.

    Classes are the categories in the order of the first file, then those that only a later one has. Raises UserError
    for what is no COCO file.
    """
    pictures: list[RawPicture] = []
    faults: list[Fault] = []
    classes: list[str] = []
    for path, split in files:
        document = _document(path)
        read = _File(path_below(path, root), split, document, classes, faults)
        pictures += read.pictures(Pictures(root, _folders(path, split)))
    if not classes:
        raise UserError(f"{files[0][0]} has no category: it must list the classes under 'categories'")
    return RawSet("COCO json", tuple(classes), "xywh", pictures, root, faults)


def is_coco(document: object) -> bool:
    """Whether what a JSON file holds is meant as COCO's annotations."""
    return isinstance(document, dict) and "images" in document and "annotations" in document


def _document(path: Path) -> dict[str, list[Any]]:
    document = read_json(path, Any, most=MOST_BYTES)
    if isinstance(document, list):
        raise UserError(f"{path} is a list, as results are: give the file that lists {', '.join(_KEYS)}")
    if not isinstance(document, dict):
        raise UserError(f"{path} is no COCO file: it must hold the lists {', '.join(_KEYS)}")
    for key in _KEYS:
        if not isinstance(document.get(key), list):
            said = "has no" if key not in document else "holds no list under"
            raise UserError(f"{path} {said} {key!r}: a COCO file holds the lists {', '.join(_KEYS)}")
    return document


def _folders(path: Path, split: str) -> list[Path]:
    """Where the pictures of a file may lie: beside it, beside its folder, in folders called images or as the split."""
    stem = path.stem.removesuffix("_annotations").removesuffix(".coco")
    words = dict.fromkeys([stem.rpartition("_")[2], split, "images", "JPEGImages", f"images/{split}", "."])
    return [folder / word for folder in (path.parent, path.parent.parent) for word in words]


@dataclass
class _File:
    """One file of annotations, read item by item: a broken one is a fault, not the end."""

    file: str  # as messages call it
    split: str
    document: dict[str, list[Any]]
    classes: list[str]  # of the set, extended by this file's
    faults: list[Fault]
    _index: dict[Id, int] = field(default_factory=dict)  # category id -> class
    _unusable: dict[Id, str] = field(default_factory=dict)  # category id -> why its annotations are left out

    def pictures(self, finder: Pictures) -> Iterable[RawPicture]:
        """The file's pictures with their annotations."""
        self._categories()
        images = self._images()
        objects = self._objects(images)
        for key, (name, size) in images.items():
            yield RawPicture(self.file, name, finder.find(name), self.split, objects[key], size)

    def _fault(self, kind: str, where: str, what: str, done: str, count: int = 1) -> None:
        self.faults.append(Fault(kind, f"{self.file}: {where}", what, done, count))

    def _categories(self) -> None:
        first: dict[str, Id] = {}
        for place, category in enumerate(self.document["categories"]):
            key, name = _id(category, "id"), category.get("name") if isinstance(category, dict) else None
            where = f"category {key if key is not None else f'number {place + 1}'}"
            if key is None or not isinstance(name, str) or not name.strip():
                self._fault("category broken", where, f"{shorten(category)} has no id and name", STOP)
                continue
            name = one_form(name.strip())
            if key in self._index or key in self._unusable:
                self._fault(
                    "category id twice", where, f"the id stands twice, the second time as {shorten(name)}", STOP
                )
            elif name in first:
                self._unusable[key] = f"category {key} has the name of category {first[name]}, {shorten(name)}"
            else:
                first[name] = key
                if name not in self.classes:
                    self.classes.append(name)
                self._index[key] = self.classes.index(name)

    def _images(self) -> dict[Id, tuple[str, Size | None]]:
        images: dict[Id, tuple[str, Size | None]] = {}
        for place, image in enumerate(self.document["images"]):
            key, name = _id(image, "id"), image.get("file_name") if isinstance(image, dict) else None
            where = f"image {key if key is not None else f'number {place + 1}'}"
            if key is None or not isinstance(name, str) or not name.strip():
                self._fault("image broken", where, f"{shorten(image)} has no id and file_name", NO_PICTURE)
            elif key in images:
                what = f"the id stands twice, as {shorten(images[key][0])} and {shorten(name)}"
                self._fault("image id twice", where, what, NO_PICTURE)
            else:
                images[key] = name, _size(image)
        return images

    def _objects(self, images: dict[Id, tuple[str, Size | None]]) -> dict[Id, list[RawObject]]:
        objects: dict[Id, list[RawObject]] = defaultdict(list)
        strange: Counter[Id] = Counter()
        first: dict[Id, str] = {}
        rows = self.document["annotations"]
        for place, annotation in enumerate(rows):
            rows[place] = None  # its memory goes where what was made of it comes
            key = _id(annotation, "id")
            where = f"annotation {key if key is not None else f'number {place + 1}'}"
            picture, category = _id(annotation, "image_id"), _id(annotation, "category_id")
            if not isinstance(annotation, dict):
                self._fault("annotation broken", where, f"{shorten(annotation)} is no object", LEFT_OUT)
            elif picture is None or picture not in images:
                what = f"image_id {shorten(annotation.get('image_id'))} is none of the file's images"
                self._fault("image unknown", where, what, LEFT_OUT)
            elif category is None:
                what = f"category_id {shorten(annotation.get('category_id'))} is neither a number nor a name"
                self._fault("class unknown", f"{where} (photo {images[picture][0]})", what, LEFT_OUT)
            elif category not in self._index:
                strange[category] += 1
                first.setdefault(category, f"{where} (photo {cut(images[picture][0], 100)})")
            else:
                objects[picture].append(_object(annotation, where, self._index[category]))
        for category, count in strange.items():
            what = self._unusable.get(category, f"category {category} is none of the file's {len(self._index)}")
            self._fault("class unknown", first[category], what, LEFT_OUT, count)
        return objects


def _object(annotation: dict[str, Any], where: str, class_index: int) -> RawObject:
    """One annotation; what is wrong with its outline is told by ``problem``, with its box by numbers that are none."""
    shape: Shape = None
    problem = ""
    outline = annotation.get("segmentation")
    try:
        if isinstance(outline, dict):
            shape = runs(outline)
        elif outline is not None and outline != []:
            shape = polygons(outline)
        elif outline == []:
            problem = "the polygon is empty"
    except NoShape as error:
        problem = str(error)
    box = annotation.get("bbox")
    if box is None or box == []:
        numbers = None
    elif isinstance(box, list) and len(box) == 4:
        numbers = tuple(float(value) if is_number(value) else math.nan for value in box)
    else:
        numbers = (math.nan,) * 4
    return RawObject(where, class_index, numbers, shape, _is_crowd(annotation), problem)  # type: ignore[arg-type]


def _is_crowd(annotation: dict[str, Any]) -> bool:
    return annotation.get("iscrowd") in (1, True)


def _id(value: object, key: str) -> Id | None:
    """An id: a whole number or a text; None: there is none."""
    found = value.get(key) if isinstance(value, dict) else None
    if isinstance(found, float) and found.is_integer():
        return int(found)
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None


def _size(image: dict[str, Any]) -> Size | None:
    """What the file says of a picture's size, if it does."""
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return Size(height, width)
    return None
