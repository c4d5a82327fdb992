"""Which size a request is answered at, and why: asked, by deadline, by load along the measured curve, by the cascade.

Pure: no clock, no thread, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from anyres.flow import Size

Reason = Literal["usual", "asked", "deadline", "load", "cascade"]
"""``usual``: the best size, as nothing stood against it."""
REASONS: tuple[Reason, ...] = ("usual", "asked", "deadline", "load", "cascade")
UP = 1.15
"""Room beyond what a larger size needs before load lets it be chosen again, so that sizes do not alternate."""


class Rung(NamedTuple):
    """A size that is worth choosing: every smaller one is worse."""

    size: Size
    quality: float | None = None  # of the curve, more is better; None: not measured


class Chosen(NamedTuple):
    """A size, and why it."""

    size: Size
    reason: Reason


def ladder(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """The sizes that are worth choosing, smallest first.

    A size that has more pixels than another and is no better is left out. Where no quality is known, larger is better.
    Pixels stand for time here, so that a machine that was busy when it was measured does not change the ladder.
    """
    known = all(rung.quality is not None for rung in rungs)

    def pixels(rung: Rung) -> int:
        return rung.size.height * rung.size.width

    def quality(rung: Rung) -> float:
        return rung.quality if known and rung.quality is not None else float(pixels(rung))

    kept: list[Rung] = []
    for rung in sorted(rungs, key=lambda each: (pixels(each), -quality(each))):
        if not kept or quality(rung) > quality(kept[-1]):
            kept.append(rung)
    return tuple(kept)


class Load:
    """How much work comes in, as exponential means over the last ``SECONDS``, and the rung that can keep up with it.

    A burst is seen sooner by a second mean over ``BURST_S``, as far as chance does not explain it (two standard
    deviations of a Poisson process).
    """

    SECONDS, BURST_S = 1.0, 0.2

    def __init__(self) -> None:
        self._when = -math.inf
        self._free = 0.0  # requests per second whose size is ours to choose
        self._burst = 0.0  # the same over the shorter time
        self._bound_ms = 0.0  # work per second of those whose size is not
        self._rung: int | None = None

    def came(self, now: float, bound_ms: float | None = None) -> None:
        """A request came; ``bound_ms``: the work it is, where its size is not ours to choose."""
        self._fade(now)
        if bound_ms is None:
            self._free += 1 / self.SECONDS
            self._burst += 1 / self.BURST_S
        else:
            self._bound_ms += bound_ms / self.SECONDS

    def room_ms(self, now: float, busy: float) -> float:
        """Milliseconds for each request of the free ones, if ``busy`` of the time is used (of several engines more
        than 1); inf if none come."""
        self._fade(now)
        left = max(1000 * busy - self._bound_ms, 0.0)
        burst = self._burst - 2 * math.sqrt(self._burst / (2 * self.BURST_S))
        free = max(self._free, burst)
        return left / free if free > 0 else math.inf

    def rung(self, costs_ms: Sequence[float], room_ms: float) -> int:
        """The highest rung (by the milliseconds of an image on each) that keeps up; the lowest where none does."""
        before = self._rung if self._rung is not None and self._rung < len(costs_ms) else len(costs_ms) - 1
        fits = [i for i, cost in enumerate(costs_ms) if cost * (UP if i > before else 1.0) <= room_ms]
        self._rung = fits[-1] if fits else 0
        return self._rung

    def _fade(self, now: float) -> None:
        """The means, as they are at ``now``; a clock that stands still or goes back changes nothing."""
        past = max(now - self._when, 0.0)
        self._free, self._bound_ms = (mean * math.exp(-past / self.SECONDS) for mean in (self._free, self._bound_ms))
        self._burst *= math.exp(-past / self.BURST_S)
        self._when = max(now, self._when)


def choose(rungs: Sequence[Rung], by_load: int, finish_ms: Callable[[Size], float], left_ms: float | None) -> Chosen:
    """The best size that load allows and that is finished in time.

    ``by_load``: the highest rung that keeps up. ``finish_ms``: until an answer at a size is there. ``left_ms``: until
    the deadline, None for none; where no size is in time, it is the cheapest.
    """
    top = len(rungs) - 1
    by_deadline = top
    if left_ms is not None:
        in_time = [i for i, rung in enumerate(rungs) if finish_ms(rung.size) <= left_ms]
        by_deadline = in_time[-1] if in_time else 0
    place = min(by_load, by_deadline)
    reason: Reason = "usual" if place == top else "deadline" if by_deadline <= by_load else "load"
    return Chosen(rungs[place].size, reason)
