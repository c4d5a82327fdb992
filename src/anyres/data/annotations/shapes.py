"""Outlines: polygons and runs as COCO writes them, turned as a picture is, and the boxes around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from anyres.data.raw_dataset import shorten
from anyres.flow import Polygons, Rle, Shape, Size

_MOST_RUNS = 2**22
"""Of one mask: many more than any outline makes."""


class NoShape(ValueError):
    """An outline that cannot be read; the text says why."""


def polygons(parts: object) -> Polygons:
    """COCO's list of lists ``[[x, y, x, y, ...], ...]``. Raises NoShape: it is refused whole if one part is wrong."""
    if not isinstance(parts, list):
        raise NoShape(f"the polygon {shorten(parts)} is no list")
    if not parts:
        raise NoShape("the polygon is empty")
    return Polygons(tuple(corners(part) for part in parts))


def corners(numbers: object) -> Float32[np.ndarray, "_ 2"]:
    """``[x, y, x, y, ...]`` -> (k, 2). Raises NoShape."""
    if not isinstance(numbers, list | tuple):
        raise NoShape(f"the polygon part {shorten(numbers)} is no list of numbers")
    if not numbers:
        raise NoShape("the polygon is empty")
    try:
        values = np.asarray(numbers)
    except ValueError:  # lists of different lengths within
        values = np.asarray("none")
    if values.ndim != 1 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise NoShape(f"the polygon {shorten(numbers)} has something else than numbers")
    if len(numbers) % 2:
        raise NoShape(f"the polygon has {len(numbers)} numbers, which make no pairs of x and y")
    if len(numbers) < 6:
        raise NoShape(f"the polygon has {len(numbers) // 2} corners: three or more are needed")
    return values.astype(np.float32).reshape(-1, 2)


def is_number(value: object) -> bool:
    """Whether JSON has a number there that a float can be made of."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53)


def runs(value: dict[str, object]) -> Rle:
    """COCO's ``{"size": [h, w], "counts": [...]}``, counts as numbers or compressed to text. Raises NoShape."""
    size, counts = value.get("size"), value.get("counts")
    sides = size if isinstance(size, list) else []
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side < 2**20 for side in sides):
        raise NoShape(f"the size {shorten(size)} of the RLE mask is no height and width")
    if isinstance(counts, str):
        lengths: Sequence[object] = _decompressed(counts)
    elif isinstance(counts, list):
        lengths = counts
    else:
        raise NoShape(f"the counts {shorten(counts)} of the RLE mask are neither numbers nor text")
    if len(lengths) > _MOST_RUNS or not all(type(n) is int and 0 <= n < 2**40 for n in lengths):
        raise NoShape("the counts of the RLE mask are no lengths of runs")
    total = sum(n for n in lengths if isinstance(n, int))
    if total != sides[0] * sides[1]:
        raise NoShape(f"the RLE mask has {total} pixels, its size {sides[0]} x {sides[1]} has {sides[0] * sides[1]}")
    return Rle(np.asarray(lengths, np.int64), Size(*sides))


def _decompressed(text: str) -> list[int]:
    """COCO's compressed counts: numbers in groups of five bits, lowest first, each from the third on as the difference
    to the one two before. Raises NoShape."""
    counts: list[int] = []
    value, shift = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise NoShape("the counts of the RLE mask are no compressed numbers")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # more bits follow
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise NoShape("the counts of the RLE mask end in the middle of a number")
    return counts


def box_of(shape: Shape) -> tuple[float, float, float, float] | None:
    """x1 y1 x2 y2 around an outline; None: there is nothing."""
    if isinstance(shape, Polygons):
        points = np.concatenate(shape.parts)
        (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
        return x1, y1, x2, y2
    if isinstance(shape, Rle):
        ys, xs = np.nonzero(shape.mask())
        if len(xs):
            return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)
    return None


def filled(parts: Sequence[Float[np.ndarray, "_ 2"]], size: Size) -> UInt8[np.ndarray, "h w"]:
    """The pixels whose centers lie within any of the polygons, as 1; inside is what a line from the left crosses into
    once more than out of."""
    made = np.zeros(size, np.uint8)
    centers = np.arange(size.height) + 0.5
    for part in parts:
        (x1, y1), (x2, y2) = part.astype(np.float64).T, np.roll(part, -1, 0).astype(np.float64).T
        rows, edges = np.nonzero((y1 <= centers[:, None]) != (y2 <= centers[:, None]))  # edges that each row crosses
        slope = (x2 - x1)[edges] / (y2 - y1)[edges]
        crossed = x1[edges] + (centers[rows] - y1[edges]) * slope
        first = np.ceil(crossed - 0.5).clip(0, size.width).astype(np.int64)  # pixel whose center lies beyond
        changes = np.zeros((size.height, size.width + 1), np.int64)
        np.add.at(changes, (rows, first), 1)
        made |= (changes.cumsum(1)[:, :-1] % 2).astype(np.uint8)
    return made


def turned_points(points: Float32[np.ndarray, "n 2"], size: Size, orientation: int) -> Float32[np.ndarray, "n 2"]:
    """Points of a lying picture of ``size`` -> of the upright one, by its EXIF orientation (5 to 8)."""
    x, y = points[:, 0], points[:, 1]
    height, width = np.float32(size.height), np.float32(size.width)
    made = {5: (y, x), 6: (height - y, x), 7: (height - y, width - x), 8: (y, width - x)}[orientation]
    return np.stack(made, 1)


def turned_pixels(pixels: Shaped[np.ndarray, "h w"], orientation: int) -> Shaped[np.ndarray, "H W"]:
    """The same of a mask or map."""
    if orientation == 5:
        return pixels.T
    if orientation == 7:
        return np.rot90(pixels, 2).T
    return np.rot90(pixels, {6: -1, 8: 1}[orientation])


def turned(shape: Shape, size: Size, orientation: int) -> Shape:
    """The same of an outline."""
    if isinstance(shape, Polygons):
        return Polygons(tuple(turned_points(part, size, orientation) for part in shape.parts))
    return Rle.of(turned_pixels(shape.mask(), orientation)) if isinstance(shape, Rle) else None
