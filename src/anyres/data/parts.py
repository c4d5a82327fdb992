"""Images of each split before their classes are numbered: what every reader of a source gives back."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anyres.config import UserError
from anyres.flow import Stored

_FORMATS = "jpg jpeg jpe jfif png gif bmp webp tif tiff ppm pgm pbm pnm avif jp2 tga ico"
ENDINGS = frozenset("." + ending for ending in _FORMATS.split())
FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_OF = {folder: split for split, folders in FOLDERS.items() for folder in folders}


@dataclass(frozen=True)
class Item:
    """An image before classes are numbered: ``key`` is its path below the root, stable between machines."""

    key: str
    label: str
    source: Path | bytes | Stored


Parts = dict[str, list[Item]]  # split -> images


@dataclass(frozen=True)
class Found:
    """What a reader found: images by split, the class names in their own order (None: sorted), and what to tell."""

    parts: Parts
    order: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)


def split_of(key: str) -> str:
    """The split that a file's name begins with (``val-0003.tar``), or that its folder is named after, or train."""
    *folders, name = key.lower().split("/")
    match = re.match(r"[a-z]+", name)
    words = [*([match[0]] if match else []), *reversed(folders)]
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")


def keys_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its path below the folder that all have in common."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return [path.absolute().relative_to(root).as_posix() for path in paths]


def number_order(labels: Iterable[str]) -> list[str]:
    """Labels sorted: by value when all are whole numbers (9 before 10), else as text."""
    different = set(labels)
    if all(re.fullmatch(r"-?\d+", label) for label in different):
        return sorted(different, key=lambda label: (int(label), label))
    return sorted(different)


def label_text(value: object, where: str) -> str:
    """A label as text: a name, or a whole number. Raises UserError that begins with ``where``."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        hint = ": several labels for one image are not read" if isinstance(value, list | tuple) else ""
        raise UserError(f"{where}: the label {value!r} is neither a name nor a whole number{hint}")
    text = str(value).strip()
    if not text:
        raise UserError(f"{where}: the label is empty")
    return text
