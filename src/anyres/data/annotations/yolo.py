"""YOLO's txt: a line ``class center-x center-y width height`` for each object, in shares of the picture's sides.

Of outlines ``class x y x y ...``. A ``data.yaml`` names classes and splits; without one, ``classes.txt`` and folders.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from anyres.config import UserError, first_line
from anyres.data.annotations.faults import LEFT_OUT, NO_PICTURE, Fault
from anyres.data.annotations.raw import RawObject, RawPicture, RawSet, path_below
from anyres.data.annotations.shapes import NoShape, corners
from anyres.data.folders import walk
from anyres.data.raw_dataset import SPLIT_OF, cut, one_form, shorten
from anyres.flow import Polygons
from anyres.storage import read_bytes

MOST_BYTES = 16 * 2**20
LABELS = {"images": "labels", "JPEGImages": "Annotations"}
"""Folder of pictures -> folder of their labels."""
_NOT_LABELS = {"classes.txt", "labels.txt", "train.txt", "val.txt", "test.txt", "README.txt"}


def read_yolo(pictures: Mapping[str, Sequence[Path]], root: Path, names: Sequence[str]) -> RawSet:
    """The pictures of each split, each with the file of labels that belongs to it; a picture without one is empty."""
    reader = _Labels(root, tuple(map(one_form, names)))
    made: list[RawPicture] = []
    used: set[Path] = set()
    for split, paths in pictures.items():
        for path in paths:
            labels = label_file(path)
            used.add(labels)
            objects = reader.read(labels, path)
            if objects is not None:
                name = path_below(path, root)
                file = path_below(labels, root) if labels.is_file() else f"{name}, without a file of labels"
                made.append(RawPicture(file, name, path, split, objects))
    for folder in sorted({path.parent for path in used}):
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            if path not in used and path.name not in _NOT_LABELS:
                what = "there is no picture of this name"
                reader.faults.append(Fault("picture missing", path_below(path, root), what, NO_PICTURE))
    return RawSet("YOLO txt", reader.classes, "shares", made, root, reader.all_faults())


def label_file(picture: Path) -> Path:
    """Where the labels of a picture lie: in ``labels`` where it lies in ``images`` (see LABELS), else beside it."""
    parts = list(picture.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part in LABELS]
    if places:
        parts[places[-1]] = LABELS[parts[places[-1]]]
    return Path(*parts).with_suffix(".txt")


class _Labels:
    """Reads files of labels; a broken line is a fault, not the end."""

    def __init__(self, root: Path, classes: tuple[str, ...]) -> None:
        self.root, self.classes = root, classes
        self.faults: list[Fault] = []
        self._strange: Counter[int] = Counter()
        self._first: dict[int, str] = {}

    def all_faults(self) -> list[Fault]:
        """Those of the lines, then those of each unknown class."""
        n = len(self.classes)
        unknown = [
            Fault("class unknown", self._first[c], f"class {c} is none of the {n}, 0 to {n - 1}", LEFT_OUT, count)
            for c, count in self._strange.items()
        ]
        return self.faults + unknown

    def read(self, labels: Path, picture: Path) -> list[RawObject] | None:
        """The objects of one file; none where there is no file. None: it cannot be read."""
        if not labels.is_file():
            return []
        try:
            text = read_bytes(labels, MOST_BYTES).decode("utf-8-sig")
        except (OSError, ValueError, UserError) as error:
            self.faults.append(Fault("file broken", path_below(labels, self.root), cut(first_line(error)), NO_PICTURE))
            return None
        objects = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                found = self._line(line.split(), f"line {number}", path_below(labels, self.root), picture)
                objects += [found] if found else []
        return objects

    def _line(self, words: list[str], where: str, file: str, picture: Path) -> RawObject | None:
        place = f"{file}: {where} (photo {picture.name})"
        numbers = [_number(word) for word in words]
        head = numbers[0]
        if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
            what = f"{len(words)} numbers: a box has 5 (class, center x and y, width, height), an outline 7, 9, ..."
            self.faults.append(Fault("line broken", place, what, LEFT_OUT))
        elif not (math.isfinite(head) and head == int(head)):
            self.faults.append(Fault("class unknown", place, f"the class {shorten(words[0])} is no number", LEFT_OUT))
        elif not 0 <= head < len(self.classes):
            self._strange[int(head)] += 1
            self._first.setdefault(int(head), place)
        elif len(numbers) == 5:
            a, b, c, d = numbers[1:]
            return RawObject(where, int(head), (a, b, c, d))
        else:
            try:
                return RawObject(where, int(head), None, Polygons((corners(numbers[1:]),)))
            except NoShape as error:
                self.faults.append(Fault("mask unusable", place, str(error), LEFT_OUT))
        return None


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def read_data_yaml(path: Path) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """The class names of a ``data.yaml`` and the pictures of its splits. Raises UserError."""
    try:
        values = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {cut(first_line(error))}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no keys: it must have names, train and val")
    names = _names(path, values)
    roots = [path.parent / str(values["path"])] if isinstance(values.get("path"), str) else []
    pictures = {}
    for split in ("train", "val", "test"):
        given = values.get(split) or (values.get("valid") if split == "val" else None)
        if given:
            pictures[split] = _listed(path, split, given, [*roots, path.parent])
    if not pictures:
        raise UserError(f"{path} names no pictures: give train (and val) a folder, or a .txt that lists pictures")
    return names, pictures


def _names(path: Path, values: dict[str, Any]) -> tuple[str, ...]:
    names = values.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{path}: names must number the classes 0 to {len(names) - 1}, not {shorten(list(names))}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise UserError(f"{path} has no 'names' that is a list of classes, as names: [cat, dog]")
    texts = [one_form(str(name).strip()) for name in names]
    if twice := next((name for name in texts if texts.count(name) > 1), None):
        raise UserError(f"{path}: the class {shorten(twice)} stands twice in names: rename one")
    count = values.get("nc")
    if isinstance(count, int) and count != len(texts):
        raise UserError(f"{path}: nc is {count}, and names has {len(texts)}: correct one of them")
    return tuple(texts)


def _listed(path: Path, split: str, given: object, roots: Sequence[Path]) -> list[Path]:
    """The pictures that ``train: ...`` means: folders, or files with a picture a line."""
    found: list[Path] = []
    for word in given if isinstance(given, list) else [given]:
        if not isinstance(word, str):
            raise UserError(f"{path}: {split} is no text: give a folder, or a .txt that lists pictures")
        spelled = [word, re.sub(r"^(\.\./)+", "", word)]  # as Roboflow writes it, from a folder that is not there
        places = [root / each for root in roots for each in spelled]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(f"{path}: {split} is {shorten(word)}, and there is no {places[0]}")
        if place.is_file():
            lines = read_bytes(place).decode(errors="surrogateescape").splitlines()
            found += [place.parent / line.strip() for line in lines if line.strip()]
        else:
            found += walk(place).images
    return found


def pictures_in(root: Path, folder: Path) -> dict[str, list[Path]]:
    """The pictures that ``train_list.txt`` and so on in the root name, if there are such lists; else those at any depth
    below ``folder``, by the split that a folder on their way is named after, else train."""
    found: dict[str, list[Path]] = defaultdict(list)
    for split in ("train", "val", "test"):
        if (root / f"{split}_list.txt").is_file():
            lines = read_bytes(root / f"{split}_list.txt").decode(errors="surrogateescape").splitlines()
            paths = (root / line.split()[0] for line in lines if line.strip())
            found[split] = [path for path in paths if path.is_file()]
    if any(found.values()):
        return found
    for path in walk(folder).images:
        words = (part.lower() for part in path.relative_to(folder).parts[:-1])
        found[next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")].append(path)
    return found
