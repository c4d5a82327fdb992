"""Predicted times: of a batch at a size, and of reading an image; corrected by every time that was measured.

Pure: no clock, no thread, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from anyres.flow import Size

WEIGHT = 0.1
"""Of the newest measurement in a running mean."""
KEPT = 64
"""Sizes beside the measured ones whose correction is kept."""
FARTHEST = 20.0
"""One measurement counts as at most so many times its prediction, or one so-manyth of it."""


class Line(NamedTuple):
    """Milliseconds of a batch: ``fixed_ms`` + images x ``image_ms``."""

    fixed_ms: float
    image_ms: float

    @classmethod
    def through(cls, one_ms: float, many_ms: float, many: int) -> Line:
        """The line through the times of one image and of ``many``; neither part is negative, an image is not free."""
        if many < 2:
            return cls(0.0, one_ms)
        image = min(max((many_ms - one_ms) / (many - 1), 0.05 * one_ms), one_ms)
        return cls(one_ms - image, image)


class Costs:
    """What work takes. ``measured``: a line for each of some sizes; others are scaled from the nearest by their pixels.

    ``read_ms``: of decoding and resizing one image, at first.
    """

    def __init__(self, measured: Mapping[Size, Line], read_ms: float = 5.0) -> None:
        self._lines = dict(measured)
        self._ratios: dict[Size, float] = {}  # measured over predicted, a running mean
        self._counts: dict[Size, int] = {}  # measurements of it
        self._every = 1.0  # the same of all sizes: how slow the machine is just now
        self.read_ms = read_ms  # of decoding an image and resizing it, a running mean

    def batch_ms(self, size: Size, images: int) -> float:
        """Of one batch of so many images at one size."""
        line, ratio = self._lines.get(size), self._ratios.get(size)
        if line is None or ratio is None:
            return self._ratio(size) * self._plain(size, images)
        return max(ratio * (line.fixed_ms + images * line.image_ms), 1e-3)

    def image_ms(self, size: Size, images: int) -> float:
        """Of one image in a batch of so many."""
        return self.batch_ms(size, images) / images

    def work_ms(self, size: Size, images: int, most: int) -> float:
        """Of so many images in batches of at most ``most``."""
        full, rest = divmod(images, most)
        return full * self.batch_ms(size, most) + (self.batch_ms(size, rest) if rest else 0.0)

    def learn(self, size: Size, images: int, ms: float) -> None:
        """A batch took so long."""
        found = _within(ms / self._plain(size, images))
        before, count = self._ratio(size), self._counts.pop(size, 1) + 1
        self._ratios.pop(size, None)
        self._ratios[size] = before + max(WEIGHT, 1 / count) * (found - before)
        self._counts[size] = count
        self._every += WEIGHT * (found - self._every)
        others = [each for each in self._ratios if each not in self._lines]
        if len(others) > KEPT:
            del self._ratios[others[0]], self._counts[others[0]]

    def learn_read(self, ms: float) -> None:
        """An image took so long to be read."""
        self.read_ms = max(self.read_ms * (1 + WEIGHT * (_within(ms / self.read_ms) - 1)), 1e-3)

    def _ratio(self, size: Size) -> float:
        """The correction of this size, else of the measured one with the nearest number of pixels, else of all."""
        known = self._ratios.get(size)
        return self._ratios.get(self._nearest(size), self._every) if known is None else known

    def _nearest(self, size: Size) -> Size:
        if size in self._lines:
            return size
        return min(self._lines, key=lambda known: abs(_pixels(known) - _pixels(size)))

    def _plain(self, size: Size, images: int) -> float:
        """As measured at the start, or scaled: a larger size costs more than its pixels, as attention is quadratic."""
        near = self._nearest(size)
        line = self._lines[near]
        if near == size:
            return max(line.fixed_ms + images * line.image_ms, 1e-3)
        more = _pixels(size) / _pixels(near)
        return max((line.fixed_ms + images * line.image_ms) * (more**1.3 if more > 1 else more), 1e-3)


def _pixels(size: Size) -> int:
    return size.height * size.width


def _within(ratio: float) -> float:
    return min(max(ratio, 1 / FARTHEST), FARTHEST)
