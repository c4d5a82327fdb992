"""Boxes in a ``.csv`` table: a row for each with the picture, xmin, ymin, xmax, ymax and the class.

Columns may be called as several tools call them, and stand in any order; RetinaNet's tables have no line of names. A
row without box and class is a picture without objects.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyres.config import UserError
from anyres.data.annotations.faults import LEFT_OUT, NO_PICTURE, Fault
from anyres.data.annotations.pictures import Pictures
from anyres.data.annotations.raw import RawObject, RawPicture, RawSet, path_below
from anyres.data.raw_dataset import SPLIT_OF, one_form, shorten
from anyres.flow import Size

_CALLED = {
    "picture": ("image_path", "filename", "file_name", "path", "image", "image_name", "file", "img"),
    "xmin": ("xmin", "x_min", "x1", "left"),
    "ymin": ("ymin", "y_min", "y1", "top"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "label": ("label", "class", "class_name", "name", "category"),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
    "split": ("split", "set"),
}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_NEEDED = ("picture", *_CORNERS, "label")
_BETWEEN = (",", ";", "\t", "|")


def is_box_table(path: Path) -> bool:
    """Whether a ``.csv`` file has boxes: the names of their columns in its first line, or RetinaNet's six cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(65536)
    except (OSError, ValueError):
        return False
    return _layout(first) is not None


def read_table(files: Sequence[tuple[Path, str]], root: Path) -> RawSet:
    """Tables, each with its split, which a column ``split`` overrules; pictures lie anywhere below ``root``.

    Classes are sorted by name. Raises UserError for what is no such table.
    """
    faults: list[Fault] = []
    gathered: dict[tuple[str, str], _Sheet] = {}
    for path, split in files:
        _read(path, split, path_below(path, root), gathered, faults)
    labels = sorted({label for sheet in gathered.values() for _, label, _ in sheet.rows})
    if not labels:
        raise UserError(f"{files[0][0]} has no box with a class")
    index = {label: i for i, label in enumerate(labels)}
    finder = Pictures(root, [path.parent / word for path, split in files for word in (".", "images", split)])
    pictures = [
        RawPicture(
            file,
            name,
            finder.find(name),
            sheet.split,
            [RawObject(where, index[label], box) for where, label, box in sheet.rows],
            sheet.size,
        )
        for (file, name), sheet in gathered.items()
    ]
    return RawSet("CSV table", tuple(labels), "xyxy", pictures, root, faults)


@dataclass
class _Sheet:
    """The rows of one picture."""

    split: str
    size: Size | None
    rows: list[tuple[str, str, tuple[float, float, float, float]]] = field(default_factory=list)


def _layout(first: str) -> tuple[str, list[str], bool] | None:
    """The sign between cells, what each column is ("" for others), and whether the line holds names."""
    for between in _BETWEEN:
        cells = [cell.strip(' "\r\n') for cell in first.split(between)]
        lower = [cell.lower() for cell in cells]
        columns = [""] * len(cells)
        for column, names in _CALLED.items():
            place = next((lower.index(name) for name in names if name in lower), None)
            if place is not None:
                columns[place] = column
        if all(column in columns for column in _NEEDED):
            return between, columns, True
        boxed = len(cells) == 6 and (all(map(_is_finite, cells[1:5])) or not any(cells[1:]))
        if boxed and cells[0] and not _is_finite(cells[0]):
            return between, list(_NEEDED), False
    return None


def _is_finite(cell: str) -> bool:
    return math.isfinite(_number(cell))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The number of each line with cells, and its cells by what they are. Raises UserError."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = _layout(file.readline())
            if found is None:
                needed = "image_path, xmin, ymin, xmax, ymax and label"
                raise UserError(f"{path}:1: no table of boxes: the first line must name the columns {needed}")
            between, columns, has_names = found
            file.seek(0)
            reader = csv.reader(file, delimiter=between, skipinitialspace=True, strict=True)
            while (cells := next(reader, None)) is not None:
                line = reader.line_num
                if (has_names and line == 1) or not any(cell.strip() for cell in cells):
                    continue
                yield line, {c: cell.strip() for c, cell in zip(columns, cells, strict=False) if c}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 table: {error}; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}:{line}: no row of cells ({error}): is a quotation mark missing?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _read(path: Path, split: str, file: str, gathered: dict[tuple[str, str], _Sheet], faults: list[Fault]) -> None:
    sizes: dict[str, Counter[Size | None]] = defaultdict(Counter)
    for line, cells in _rows(path):
        where, name = f"line {line}", cells.get("picture", "")
        place = f"{file}: {where}"
        if not name:
            faults.append(Fault("line broken", place, "no picture is named", LEFT_OUT))
            continue
        part = SPLIT_OF.get(cells.get("split", "").lower(), split)
        size = _size(cells)
        sheet = gathered.setdefault((file, name), _Sheet(part, size))
        sizes[name][size] += 1
        box, label = [cells.get(corner, "") for corner in _CORNERS], one_form(cells.get("label", ""))
        if not any(box):
            continue  # a picture without objects
        if not label:
            faults.append(Fault("class unknown", f"{place} (photo {name})", "the class is empty", LEFT_OUT))
            continue
        x1, y1, x2, y2 = map(_number, box)
        if (x1, y1, x2, y2) == (0, 0, 0, 0):
            continue  # as some tools write a picture without objects
        sheet.rows.append((where, label, (x1, y1, x2, y2)))
    for name, said in sizes.items():
        if len(said) > 1:
            del gathered[file, name]
            what = f"its lines say {len(said)} sizes: {shorten([str(size) for size in said])}"
            faults.append(Fault("another size", f"{file} (photo {name})", what, NO_PICTURE))


def _size(cells: Mapping[str, str]) -> Size | None:
    height, width = cells.get("height", ""), cells.get("width", "")
    known = height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0
    return Size(int(height), int(width)) if known else None
