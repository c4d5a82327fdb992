"""Runners built for one shape each, as many as are worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Any, NamedTuple

from anyres.deploy.engines.engine import Runner

KEPT = 16
"""Number of runners kept, with their CUDA graphs and weights; a further one replaces the least recently used."""


class Shape(NamedTuple):
    """The input shape of a runner."""

    batch: int  # images
    height: int  # pixels
    width: int  # pixels


class CompiledCache:
    """Shape -> its runner, built by ``make`` when it is first needed, and kept while among the last KEPT in use.

    With a ``fallback``, a runner that takes any shape, a shape gets its own runner only when it comes again while it is
    among the last KEPT shapes that were requested: a new size in every call causes no compilation.

    Threads may share it: one builds, and others wait for it.
    """

    def __init__(self, make: Callable[[Shape], Runner], fallback: Runner | None = None) -> None:
        self.make = make
        self.fallback = fallback
        self.made: dict[Shape, Runner] = {}  # both in the order of their last use
        self.recent: dict[Shape, None] = {}
        self._turn = RLock()

    def __getitem__(self, shape: Shape) -> Runner:
        with self._turn:
            again = shape in self.recent
            self.recent[shape] = self.recent.pop(shape, None)
            _drop_oldest(self.recent)
            if shape not in self.made and self.fallback is not None and not again:
                return self.fallback
            runner = self.made.pop(shape) if shape in self.made else self.make(shape)
            self[shape] = runner
            return runner

    def __setitem__(self, shape: Shape, runner: Runner) -> None:
        with self._turn:
            self.made[shape] = runner
            _drop_oldest(self.made)


def _drop_oldest(kept: dict[Shape, Any]) -> None:
    if len(kept) > KEPT:
        del kept[next(iter(kept))]
