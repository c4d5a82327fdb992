"""Class maps: a file beside each picture whose pixels say the class, as indices, palette indices or colors."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from anyres.config import UserError, first_line
from anyres.data.annotations.annotated import AnnotatedSet
from anyres.data.annotations.faults import NO_PICTURE, STOP, TURNED, Faults
from anyres.data.annotations.pictures import LYING, look
from anyres.data.annotations.raw import path_below
from anyres.data.annotations.rules import wide_high
from anyres.data.annotations.shapes import turned_pixels
from anyres.data.image_formats import formats, openable
from anyres.data.raw_dataset import cut, one_form
from anyres.flow import IGNORED, MapFile, Record, Size
from anyres.storage import read_bytes

MOST_CLASSES = 255
_COLORED = ["RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]


@dataclass(frozen=True)
class Names:
    """The classes in their order, and the color of each where maps are colored."""

    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Pair:
    """A picture and its map, either of which may be missing."""

    stem: str
    picture: Path | None
    map: Path | None
    split: str


def read_masks(
    name: str, form: str, root: Path, pairs: Sequence[Pair], names: Names | None, first: int
) -> AnnotatedSet:
    """Pictures with their maps, checked for being there and for their size; pixels are read where they are used.

    ``names`` None: the maps are read for the values they have, which then are the classes. ``first``: the value of
    class 0 (ADE20K: 1).
    """
    faults = Faults()
    parts: dict[str, list[Record]] = {}
    notes: list[str] = []
    for pair in pairs:
        record = _record(pair, root, first, names.colors if names else (), faults)
        if record is not None:
            parts.setdefault(pair.split, []).append(record)
    if names is None:
        names = _values(parts, first, faults, notes)
    made = {split: tuple(records) for split, records in parts.items()}
    return AnnotatedSet(name, form, "maps", names.classes, made, faults, len(pairs), len(pairs), notes=tuple(notes))


def _record(
    pair: Pair, root: Path, first: int, colors: tuple[tuple[int, int, int], ...], faults: Faults
) -> Record | None:
    if pair.picture is None or pair.map is None:
        there = pair.picture or pair.map
        assert there is not None
        what = "no map" if pair.map is None else "no picture"
        faults.add(f"{what.split()[1]} missing", path_below(there, root), f"there is {what} of this name", NO_PICTURE)
        return None
    place = f"{path_below(pair.map, root)} (photo {path_below(pair.picture, root)})"
    try:
        seen = look(pair.picture)
    except ValueError as error:
        faults.add("picture unreadable", place, f"the picture cannot be read ({error})", NO_PICTURE)
        return None
    try:
        size = look(pair.map).size
    except ValueError as error:
        faults.add("map unreadable", place, f"the map cannot be read ({error})", NO_PICTURE)
        return None
    turned = 1
    if size != seen.size:
        if seen.orientation not in LYING or size != Size(seen.size.width, seen.size.height):
            what = f"the map is {wide_high(size)}, the picture is {wide_high(seen.size)} (width x height)"
            faults.add("map of another size", place, what, STOP)
            return None
        what = f"{wide_high(size)} is the size before the picture is turned by its EXIF orientation"
        faults.add("turned by EXIF", place, what, TURNED)
        turned = seen.orientation
    target = MapFile(pair.map, seen.size, path_below(pair.map, root), first, colors, turned)
    return Record(pair.picture, target, path_below(pair.picture, root))


def _values(parts: dict[str, list[Record]], first: int, faults: Faults, notes: list[str]) -> Names:
    """The values that the maps have, as classes."""
    values: set[int] = set()
    for record in (record for records in parts.values() for record in records):
        assert isinstance(record.target, MapFile)
        try:
            pixels = read_pixels(record.target)
        except UserError as error:
            faults.add("map unusable", record.target.name, str(error).removeprefix(f"{record.target.name}: "), STOP)
            return Names(())
        values.update(np.unique(pixels).tolist())
    classes = sorted(value - first for value in values - {IGNORED} if value >= first)
    if classes and classes[-1] < MOST_CLASSES:
        notes.append(
            f"no classes.txt names the classes: they are called by the values, {first} to {classes[-1] + first}"
        )
        return Names(tuple(str(i + first) for i in range(classes[-1] + 1)))
    said = f"their largest value is {classes[-1] + first}" if classes else "they have no value but 255"
    faults.add("map unusable", "the maps", f"{said}: name the classes in a classes.txt", STOP)
    return Names(())


def class_map(file: MapFile, classes: int) -> UInt8[np.ndarray, "h w"]:
    """The class index of each pixel of the upright picture; 255: ignored. Raises UserError with file and value."""
    pixels = read_pixels(file)
    if pixels.ndim == 3:
        found = _by_color(pixels, file)
    else:
        found = pixels.astype(np.int64) - file.first
        found[(pixels == IGNORED) | (pixels < file.first)] = IGNORED
    above = (found >= classes) & (found != IGNORED)
    if above.any():
        y, x = (int(places[0]) for places in np.nonzero(above))
        value = int(pixels[y, x]) if pixels.ndim == 2 else int(found[y, x])
        last = file.first + classes - 1
        raise UserError(
            f"{file.name}: the value {value} at x={x}, y={y}: there are {classes} classes, {file.first} to {last}, "
            "and 255 for what is ignored"
        )
    made = found.astype(np.uint8)
    return turned_pixels(made, file.turned) if file.turned in LYING else made


def read_pixels(file: MapFile) -> Integer[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]:
    """The values of a map as its file has them: (h, w) indices, or (h, w, 3) colors. Raises UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's
            with Image.open(openable(file.source), formats=formats()) as image:
                lossy, mode = image.format in ("JPEG", "MPO"), image.mode
                is_colored = mode in _COLORED or (mode == "P" and bool(file.colors))
                pixels = np.array(image.convert("RGB") if is_colored else image)
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise UserError(f"{file.name}: the map cannot be read ({cut(first_line(error))})") from None
    if lossy:
        raise UserError(f"{file.name}: a JPEG does not keep values exactly: save maps as PNG")
    if is_colored and not file.colors:
        raise UserError(
            f"{file.name}: the map is colored, and nothing says which color is which class: write a classes.csv with "
            "the columns name,r,g,b, or save maps as indices"
        )
    if mode in ("LA", "PA"):
        pixels = np.asarray(pixels[..., 0])
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise UserError(f"{file.name}: the map holds {pixels.dtype} values: save maps as whole numbers")
    return pixels


def _by_color(pixels: UInt8[np.ndarray, "h w 3"], file: MapFile) -> Integer[np.ndarray, "h w"]:
    """The class of each pixel by its color."""
    codes = pixels.astype(np.int64) @ np.asarray([1 << 16, 1 << 8, 1])
    known = np.asarray([(r << 16) + (g << 8) + b for r, g, b in file.colors])
    order = np.argsort(known)
    places = np.searchsorted(known[order], codes).clip(0, len(known) - 1)
    found: Integer[np.ndarray, "h w"] = order[places]
    if (strange := known[found] != codes).any():
        y, x = (int(places[0]) for places in np.nonzero(strange))
        color = ", ".join(map(str, pixels[y, x].tolist()))
        raise UserError(f"{file.name}: the color {color} at x={x}, y={y} is of no class: add it to classes.csv")
    return found


def read_names(folder: Path) -> Names | None:
    """What ``classes.csv``, ``classes.txt`` or ADE20K's ``objectInfo150.txt`` in a folder says; None: there is none.

    ``classes.csv``: ``name`` or ``name,r,g,b`` a line, a first line of such words left out. Raises UserError.
    """
    for name in ("classes.csv", "class_dict.csv", "classes.txt", "labels.txt", "objectInfo150.txt"):
        path = folder / name
        if path.is_file():
            return _from_table(path) if path.suffix == ".csv" else Names(_once(path, _from_text(path)))
    return None


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: {error}") from None


def _from_text(path: Path) -> list[str]:
    lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if path.name.startswith("objectInfo"):  # Idx Ratio Train Val Stuff Name, tabs between
        return [line.split("\t")[-1].strip() for line in lines[1:]]
    return lines


def _from_table(path: Path) -> Names:
    rows = [[cell.strip() for cell in row] for row in csv.reader(_text(path).splitlines()) if any(row)]
    if rows and rows[0][0].lower() in ("name", "class", "label"):
        rows = rows[1:]
    colors = []
    for row in rows:
        cells = row[1:4]
        if len(cells) == 3:
            if not all(cell.isdecimal() and int(cell) < 256 for cell in cells):
                raise UserError(f"{path}: {','.join(row)!r} is no class with a color: write name,r,g,b, each 0 to 255")
            colors.append((int(cells[0]), int(cells[1]), int(cells[2])))
    if colors and len(colors) != len(rows):
        raise UserError(f"{path}: {len(colors)} of {len(rows)} classes have a color: give every class one, or none")
    if twice := next((color for color in colors if colors.count(color) > 1), None):
        raise UserError(f"{path}: the color {','.join(map(str, twice))} stands for two classes")
    return Names(_once(path, [row[0] for row in rows]), tuple(colors))


def _once(path: Path, names: list[str]) -> tuple[str, ...]:
    texts = [one_form(name) for name in names]
    if not texts:
        raise UserError(f"{path} names no class")
    if len(texts) > MOST_CLASSES:
        raise UserError(f"{path} names {len(texts)} classes: a map tells {MOST_CLASSES} apart")
    if twice := next((name for name in texts if texts.count(name) > 1), None):
        raise UserError(f"{path}: the class {twice!r} stands twice: rename one")
    return tuple(texts)
