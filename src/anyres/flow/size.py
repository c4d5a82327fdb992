"""Height and width, as people write them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from anyres.config import UserError, printable

MOST_SIDE = 2**15
"""Pixels of a side: beyond it no library here decodes, and no machine holds a batch."""
MOST_SIZES = 1000
"""That are named at once."""


class Size(NamedTuple):
    """Height and width of an image in pixels; written ``HxW``, or ``S`` for a square."""

    height: int
    width: int

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str | int) -> Size:
        """``"320x192"`` (height x width) or ``"224"`` -> Size. Raises UserError for anything else."""
        match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", str(text).strip(), re.ASCII)
        if not match or not all(int(g) for g in match.groups() if g):
            raise UserError(
                f"size {printable(repr(text), 80)} is neither a side such as 224 nor HEIGHTxWIDTH such as 320x192"
            )
        height = int(match[1])
        size = cls(height, int(match[2] or height))
        if max(size) > MOST_SIDE:
            raise UserError(f"size {printable(str(text), 40)} is beyond {MOST_SIDE} px a side: give a smaller one")
        return size


def parse_sizes(texts: Sequence[str]) -> tuple[Size, ...]:
    """``["64:320:32", "320x192"]`` -> sizes; a range START:STOP:STEP includes STOP. Raises UserError."""
    sizes: list[Size] = []
    for text in (part for word in texts for part in str(word).split(",") if part):
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18}):(\d{1,18})", text, re.ASCII)
        if match:
            start, stop, step = map(int, match.groups())
            if not (0 < start <= stop and step > 0):
                raise UserError(
                    f"size range {text!r} is empty: write START:STOP:STEP with START <= STOP, as in 64:320:32"
                )
            if stop > MOST_SIDE or (stop - start) // step >= MOST_SIZES:
                raise UserError(
                    f"size range {text!r} is too long: at most {MOST_SIZES} sizes, none beyond {MOST_SIDE} px a side"
                )
            sizes += [Size(side, side) for side in range(start, stop + 1, step)]
        else:
            sizes.append(Size.parse(text))
    if len(sizes) > MOST_SIZES:
        raise UserError(f"{len(sizes)} sizes are given: at most {MOST_SIZES}")
    if not sizes:
        raise UserError("no size is given: write one or more, as 224, 320x192 or 64:320:32")
    return tuple(dict.fromkeys(sizes))
