"""What is drawn on a picture: boxes with classes and outlines, or the file of a class map. Imports no torch.

Positions are pixels of the upright picture (turned by its EXIF orientation), x to the right and y down, continuous: the
pixel in row r and column c covers [c, c + 1) x [r, r + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from anyres.flow.record import Stored
from anyres.flow.size import Size

IGNORED = 255
"""The value of a class map where nothing is learned and nothing is scored."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """An outline of one or several ``parts``: float32 (k, 2) corners x, y each, at least three."""

    parts: tuple[Float32[np.ndarray, "_ 2"], ...]

    def plain(self) -> tuple[tuple[float, ...], ...]:
        """Numbers alone, x and y in turn."""
        return tuple(tuple(part.reshape(-1).tolist()) for part in self.parts)


@dataclass(frozen=True, eq=False)
class Rle:
    """A mask by the lengths of its runs of zeros and ones in turn, zeros first, column by column (COCO's order)."""

    counts: Int64[np.ndarray, " runs"]
    of_size: Size

    def plain(self) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Numbers alone."""
        return tuple(self.counts.tolist()), (self.of_size.height, self.of_size.width)

    def mask(self) -> UInt8[np.ndarray, "h w"]:
        """The mask, 0 and 1."""
        values = np.arange(len(self.counts)) % 2
        flat = np.repeat(values.astype(np.uint8), self.counts)
        return flat.reshape(self.of_size.width, self.of_size.height).T

    @classmethod
    def of(cls, mask: UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]) -> Rle:
        """The runs of a mask, of which all but 0 is the object."""
        flat = np.concatenate([[False], mask.T.reshape(-1) != 0])
        starts = np.flatnonzero(flat[1:] != flat[:-1])
        ends = np.concatenate([[0], starts, [len(flat) - 1]])
        return cls(np.diff(ends).astype(np.int64), Size(*mask.shape))


Shape = Polygons | Rle | None


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one picture.

    ``boxes``: float32 (n, 4), x1 y1 x2 y2 in pixels of the upright picture, all within it and with an area.
    ``classes``: int64 (n,) indices of the set's classes. ``shapes``: the outline of each, or None. ``crowd``: bool
    (n,), true where a box stands for several objects. ``of_size``: the upright picture's.
    """

    boxes: Float32[np.ndarray, "n 4"]
    classes: Int64[np.ndarray, " n"]
    shapes: tuple[Shape, ...]
    crowd: Bool[np.ndarray, " n"]
    of_size: Size

    def __len__(self) -> int:
        return len(self.boxes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objects) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(self.plain())

    def plain(self) -> tuple[object, ...]:
        """Numbers alone: equal for equal objects, and what a fingerprint takes."""
        shapes = tuple(None if shape is None else shape.plain() for shape in self.shapes)
        boxes = tuple(map(tuple, self.boxes.tolist()))
        return boxes, tuple(self.classes.tolist()), shapes, tuple(self.crowd.tolist()), tuple(self.of_size)


@dataclass(frozen=True)
class MapFile:
    """The file whose pixels say the class at each place; ``anyres.data.annotations.masks.class_map`` reads it.

    ``of_size``: the upright picture's. ``name``: what a message calls it. ``first``: the pixel value of class 0; what
    is below it, and 255, is ignored (ADE20K: 1). ``colors``: red, green, blue of each class, where pixels are colors.
    ``turned``: the EXIF orientation by which the pixels are turned, as their picture is.
    """

    source: Path | bytes | Stored
    of_size: Size
    name: str
    first: int = 0
    colors: tuple[tuple[int, int, int], ...] = ()
    turned: int = 1

    def plain(self) -> tuple[object, ...]:
        """What a fingerprint takes; pixels are not read."""
        return self.name, tuple(self.of_size), self.first, self.colors, self.turned
