"""Large pictures cut into tiles: each a picture of its own, with what is drawn on its part.

A scene of thousands of pixels, seen at a few hundred, would show its objects too small; its tiles show them as they
are.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from threading import Lock

import numpy as np
from PIL import Image

from anyres.config import UserError
from anyres.data.annotations.shapes import filled
from anyres.data.decode import decode
from anyres.flow import Objects, Polygons, Record, Rle, Shape, Size

SHOWN = 0.5
"""Share of a box that lies within a tile from which on it is an object of it; below, it stands there as a crowd, which
is neither learned nor scored."""
_LOCK = Lock()  # threads wait for a scene instead of each decoding it


@dataclass(frozen=True, eq=False)
class Scene:
    """A whole picture, and how many channels its tiles have."""

    record: Record


@dataclass(frozen=True, eq=False)
class Tile:
    """The part ``size`` of a scene at (``top``, ``left``), as a file that can be read (``flow.Stored``)."""

    scene: Scene
    top: int
    left: int
    size: Size

    def read(self) -> bytes:
        """A PNG. Raises what decoding the scene does."""
        with _LOCK:
            pixels = _pixels(self.scene)
        part = pixels[self.top : self.top + self.size.height, self.left : self.left + self.size.width]
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(part)).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()


@lru_cache(maxsize=2)
def _pixels(scene: Scene) -> np.ndarray:
    """(h, w, 3) of the upright scene; of those read last, as tiles of one come together."""
    image = decode(scene.record, channels=3).image
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def tiles_of(record: Record, side: int) -> tuple[Record, ...]:
    """The tiles of a picture: parts that do not overlap, all of about ``side`` pixels, its size divided evenly.

    A picture below one and a half times the side stays as it is. A box belongs to each tile that has ``SHOWN`` of it,
    cut to the tile; its outline becomes a mask. Raises UserError for a picture with a class map.
    """
    target = record.target
    if not isinstance(target, Objects):
        raise UserError(f"data.tile cuts pictures with boxes, and {record.name} has none: leave it out")
    rows, columns = (_edges(length, side) for length in target.of_size)
    if len(rows) == len(columns) == 2:
        return (record,)
    scene = Scene(record)
    made = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            size = Size(bottom - top, right - left)
            name = f"{record.name} [{top}:{bottom}, {left}:{right}]"
            made.append(Record(Tile(scene, top, left, size), _within(target, top, left, size), name))
    return tuple(made)


def _edges(length: int, side: int) -> list[int]:
    """Where tiles begin, and the last one ends."""
    count = max(1, round(length / side))
    return [round(length * i / count) for i in range(count + 1)]


def _within(target: Objects, top: int, left: int, size: Size) -> Objects:
    """What is drawn on a part of a picture, in pixels of that."""
    moved = target.boxes - np.array([left, top, left, top], np.float32)
    inside = np.clip(moved, 0, np.array([size.width, size.height] * 2, np.float32))
    wide, high = inside[:, 2] - inside[:, 0], inside[:, 3] - inside[:, 1]
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    kept = np.flatnonzero((wide >= 1) & (high >= 1))
    cut = (wide * high < SHOWN * area)[kept]
    shapes = tuple(_shape_within(target.shapes[i], top, left, size) for i in kept.tolist())
    return Objects(inside[kept], target.classes[kept], shapes, target.crowd[kept] | cut, size)


def _shape_within(shape: Shape, top: int, left: int, size: Size) -> Shape:
    if isinstance(shape, Polygons):
        return Rle.of(filled([part - np.array([left, top], np.float32) for part in shape.parts], size))
    if isinstance(shape, Rle):
        return Rle.of(shape.mask()[top : top + size.height, left : left + size.width])
    return None
