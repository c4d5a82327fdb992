"""What a reader of annotations gives back: as the files say it, before anything is checked against the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from anyres.data.annotations.faults import Fault
from anyres.flow import Shape, Size, Stored

Corners = Literal["xywh", "xyxy", "voc", "shares"]
"""What four numbers of a box are: x y width height (COCO); x1 y1 x2 y2 (CSV); the same with pixels counted from 1 and
the last one within (VOC); center x, center y, width, height as shares of the picture's sides (YOLO)."""


@dataclass(frozen=True)
class RawObject:
    """One annotation as the file has it. ``where`` names it within its file.

    ``box``: four numbers; None where only a ``shape`` is given. ``shape``: in pixels of the picture as declared, or, of
    ``shares``, in shares of its sides. ``problem``: why ``shape`` is missing though one was meant.
    """

    where: str
    class_index: int
    box: tuple[float, float, float, float] | None
    shape: Shape = None
    crowd: bool = False
    problem: str = ""


@dataclass(frozen=True)
class RawPicture:
    """One picture as a file of annotations has it.

    ``file``: names that file in messages. ``name``: the picture's, as the file has it. ``source``: where it lies, or
    the sentence that says why it is not to be had. ``declared``: the size that the file says, if it does.
    """

    file: str
    name: str
    source: Path | bytes | Stored | str
    split: str
    objects: Sequence[RawObject]
    declared: Size | None = None


@dataclass(frozen=True)
class RawSet:
    """Every picture of a set below ``root``; ``faults`` are those that a reader met by itself, each with an annotation
    or picture left out."""

    form: str
    classes: tuple[str, ...]
    corners: Corners
    pictures: Sequence[RawPicture]
    root: Path
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def path_below(path: Path, root: Path) -> str:
    """A file as messages call it: its path below ``root``, if it lies there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
