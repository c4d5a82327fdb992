"""How good a model is at one size, and what it costs there. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from anyres.flow.size import Size


@dataclass(frozen=True)
class Metric:
    """How good, as a number: ``key`` in files, ``name`` for people.

    ``unit`` is what follows a value: with ``%`` values are shares in [0, 1], shown times 100. ``over`` and ``interval``
    say in words what it is a mean of and how its interval is worked out, where that is not plain.
    """

    key: str
    name: str
    unit: str = "%"
    higher_is_better: bool = True
    over: str = ""
    interval: str = ""

    @property
    def scale(self) -> float:
        """What a value is multiplied by when it is shown."""
        return 100.0 if self.unit == "%" else 1.0

    def text(self, value: float, digits: int | None = None) -> str:
        """``76.4 %``; a number with another unit has three significant digits, if ``digits`` does not say."""
        shown = self.scale * value
        number = f"{shown:.{digits}f}" if digits is not None else f"{shown:.1f}" if self.unit == "%" else f"{shown:.3g}"
        return f"{number} {self.unit}".rstrip()


class Estimate(NamedTuple):
    """A measured value and its 95 % interval (NaN where none was worked out)."""

    value: float
    low: float = math.nan
    high: float = math.nan


DISTURBED = 1.5
"""Largest over smallest median of the rounds, beyond which a timing says little."""


def is_disturbed(rounds: Sequence[float]) -> bool:
    """Whether the rounds of one timing (their medians, as times or as rates) differ by more than ``DISTURBED`` times.

    Something else then ran on the machine during some of them.
    """
    return max(rounds) > DISTURBED * min(rounds)


@dataclass(frozen=True)
class Cost:
    """What one image costs a model at one size. NaN: not measured."""

    latency_ms: float  # median time of one batch of one image
    images_per_s: float  # throughput in batches of several images
    macs: int  # multiply-accumulates of one image
    latency_low_ms: float = math.nan  # smallest median of a round
    latency_high_ms: float = math.nan  # largest median of a round
    disturbed: bool = False  # the rounds of one of the two timings differ too much: see ``is_disturbed``


@dataclass(frozen=True)
class SizeResult:
    """One model at one size: how good, how sure, how costly.

    ``metrics``: by the ``key`` of each of ``described``, of which the first is the headline. ``n``: images scored.
    """

    model: str
    size: Size
    metrics: Mapping[str, Estimate]
    described: tuple[Metric, ...]
    n: int
    cost: Cost

    @property
    def headline(self) -> Metric:
        """The metric that decides."""
        return self.described[0]

    @property
    def best(self) -> Estimate:
        """The headline's value."""
        return self.metrics[self.headline.key]

    @property
    def quality(self) -> float:
        """The headline's value, so that more is better."""
        return self.best.value if self.headline.higher_is_better else -self.best.value

    def row(self) -> dict[str, str | int | float | bool]:
        """Plain values under the names that files use: ``top1``, ``top1_low``, ``latency_ms``, ..."""
        head, *others = self.described
        values: dict[str, str | int | float | bool] = {
            "model": self.model,
            "height": self.size.height,
            "width": self.size.width,
            head.key: self.best.value,
            "n": self.n,
            "latency_ms": self.cost.latency_ms,
            "macs": self.cost.macs,
            f"{head.key}_low": self.best.low,
            f"{head.key}_high": self.best.high,
        }
        for metric in others:
            estimate = self.metrics[metric.key]
            values[metric.key] = estimate.value
            if not math.isnan(estimate.low):
                values |= {f"{metric.key}_low": estimate.low, f"{metric.key}_high": estimate.high}
        return values | {
            "images_per_s": self.cost.images_per_s,
            "latency_low_ms": self.cost.latency_low_ms,
            "latency_high_ms": self.cost.latency_high_ms,
            "disturbed": self.cost.disturbed,
        }
