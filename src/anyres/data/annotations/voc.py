"""PASCAL VOC's xml: one file for each picture, corners counted from 1."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from anyres.config import UserError, first_line
from anyres.data.annotations.faults import LEFT_OUT, NO_PICTURE, Fault
from anyres.data.annotations.pictures import Pictures
from anyres.data.annotations.raw import RawObject, RawPicture, RawSet, path_below
from anyres.data.raw_dataset import cut, one_form, shorten
from anyres.flow import Size
from anyres.storage import read_bytes

MOST_BYTES = 16 * 2**20
"""Of one file: a hundred thousand objects."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Sheet:
    """One file: the picture's name, size and objects, each a class name and four numbers."""

    picture: str
    size: Size | None
    objects: Sequence[tuple[str, tuple[float, float, float, float] | None]]


def read_voc(files: Mapping[Path, str], root: Path, names: Sequence[str] | None, notes: Sequence[str] = ()) -> RawSet:
    """Files, each with its split; pictures lie beside them or anywhere below ``root``.

    ``names``: the classes in their order; None: those that the files have, sorted. ``notes``: what was told of the
    files before. Raises UserError where no file has
    an object.
    """
    finder = Pictures(root, [folder for path in files for folder in _folders(path)])
    faults: list[Fault] = []
    sheets: dict[Path, Sheet] = {}
    for path in files:
        try:
            sheets[path] = read_sheet(read_bytes(path, MOST_BYTES), path.stem)
        except (UserError, OSError, ValueError) as error:
            faults.append(Fault("file broken", path_below(path, root), cut(first_line(error)), NO_PICTURE))
    classes = tuple(names) if names else tuple(sorted({name for sheet in sheets.values() for name, _ in sheet.objects}))
    if not classes:
        raise UserError(f"{root} has no object in its {len(files)} .xml files: each needs <object> with <name>")
    index = {name: i for i, name in enumerate(classes)}
    strange: Counter[str] = Counter()
    first: dict[str, str] = {}
    pictures = []
    for path, sheet in sheets.items():
        objects = []
        for number, (name, box) in enumerate(sheet.objects, 1):
            if name in index:
                objects.append(RawObject(f"object {number}", index[name], box))
            else:
                strange[name] += 1
                first.setdefault(name, f"{path_below(path, root)}: object {number} (photo {sheet.picture})")
        found = finder.find(sheet.picture)
        pictures.append(RawPicture(path_below(path, root), sheet.picture, found, files[path], objects, sheet.size))
    for name, count in strange.items():
        what = f"class {shorten(name)} is none of the {len(classes)} of the list"
        faults.append(Fault("class unknown", first[name], what, LEFT_OUT, count))
    return RawSet("VOC xml", classes, "voc", pictures, root, faults, list(notes))


def _folders(path: Path) -> list[Path]:
    return [path.parent, *(path.parent.parent / name for name in ("JPEGImages", "images"))]


def parse_xml(content: bytes) -> ET.Element:
    """XML without declarations of types and entities, with which a small file can ask for all memory.

    Raises ValueError.
    """
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(content, True)
        return ET.fromstring(content)
    except (expat.ExpatError, ET.ParseError, LookupError) as error:
        raise ValueError(f"it is no XML ({first_line(error)})") from None


def _refuse(*_: object) -> None:
    raise ValueError("it declares types or entities, which no file of annotations needs: take the declaration out")


def read_sheet(content: bytes, stem: str) -> Sheet:
    """One file, whose picture is called ``stem`` where it does not say. Raises ValueError."""
    root = parse_xml(content)
    if root.tag != "annotation":
        raise ValueError(f"its first element is <{cut(root.tag, 40)}>, not <annotation>")
    name = (root.findtext("filename") or "").strip() or f"{stem}.jpg"
    size = root.find("size")
    sides = [_number(size.findtext(side)) for side in ("height", "width")] if size is not None else []
    known = len(sides) == 2 and all(math.isfinite(side) and side >= 1 for side in sides)
    return Sheet(name, Size(int(sides[0]), int(sides[1])) if known else None, [_object(o) for o in root.iter("object")])


def _object(element: ET.Element) -> tuple[str, tuple[float, float, float, float] | None]:
    box = element.find("bndbox")
    corners = None
    if box is not None:
        x1, y1, x2, y2 = (_number(box.findtext(corner)) for corner in _CORNERS)
        corners = x1, y1, x2, y2
    return one_form((element.findtext("name") or "").strip()), corners


def _number(text: str | None) -> float:
    """NaN for what is no number."""
    try:
        return float(text or "")
    except ValueError:
        return math.nan
