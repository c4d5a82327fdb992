"""Programs made for one shape each, as many as are worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from anyres.deploy.engines.backend import Run

KEPT = 16
"""As many programs are kept, with their CUDA graphs and weights; of a seventeenth, the one unused longest goes."""


class Shape(NamedTuple):
    """What a program is made for."""

    batch: int
    height: int
    width: int


class Programs:
    """Shape -> the program for it, made by ``make`` when it is first wanted, and kept while among the last KEPT.

    With a ``stopgap``, a program that takes any shape, a shape gets one of its own only when it comes again while it is
    still among the last KEPT shapes that came: whoever sends a new size with every call causes no compilation.
    """

    def __init__(self, make: Callable[[Shape], Run], stopgap: Run | None = None) -> None:
        self.make = make
        self.stopgap = stopgap
        self.made: dict[Shape, Run] = {}  # both in the order of their last use
        self.came: dict[Shape, None] = {}

    def __getitem__(self, shape: Shape) -> Run:
        again = shape in self.came
        self.came[shape] = self.came.pop(shape, None)
        _forget(self.came)
        if shape not in self.made and self.stopgap is not None and not again:
            return self.stopgap
        program = self.made.pop(shape) if shape in self.made else self.make(shape)
        self[shape] = program
        return program

    def __setitem__(self, shape: Shape, program: Run) -> None:
        self.made[shape] = program
        _forget(self.made)


def _forget(kept: dict[Shape, Any]) -> None:
    """What is too much, from the front."""
    if len(kept) > KEPT:
        del kept[next(iter(kept))]
