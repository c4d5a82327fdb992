"""A chart of lines over epochs, as the numbers that a page draws it from: it takes its colors and type from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from anyres.evaluation.page import Chart


class Frame(NamedTuple):
    """The drawing and, within it, the box of the lines, in its own units, about CSS pixels."""

    width: int = 440
    height: int = 242
    left: int = 46
    right: int = 428
    top: int = 12
    foot: int = 214


FRAME = Frame()
MOST_DOTS = 24
"""A line of so many points shows each of them."""


@dataclass(frozen=True)
class DrawnLine:
    """A line in the chart's units: ``path`` for a polyline, ``dots`` to be marked, and its last value as text."""

    name: str
    path: str
    dots: Sequence[tuple[str, str]]
    last: str


@dataclass(frozen=True)
class DrawnChart:
    """Everything at its place: ``across`` and ``along`` are ticks (place, text); ``kept`` the place of a mark."""

    title: str
    lines: Sequence[DrawnLine]
    across: Sequence[tuple[str, str]]
    along: Sequence[tuple[str, str]]
    kept: str | None
    alt: str


def drawn_chart(chart: Chart) -> DrawnChart:
    """Places of the chart's lines in FRAME; each line has a point, all finite."""
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    right = max(*xs, chart.kept or 0.0, 1.0)
    heights = _ticks(min(ys), max(ys), 5)
    low, high = min(heights[0], *ys), max(heights[-1], *ys)

    def across(x: float) -> str:
        return f"{FRAME.left + (FRAME.right - FRAME.left) * x / right:.1f}"

    def along(y: float) -> str:
        return f"{FRAME.foot - (FRAME.foot - FRAME.top) * (y - low) / ((high - low) or 1.0):.1f}"

    lines = []
    for line in chart.lines:
        places = [(across(x), along(y)) for x, y in line.points]
        dots = places if len(places) <= MOST_DOTS else []
        last = f"{line.points[-1][1]:.3g} {chart.unit}".rstrip()
        lines.append(DrawnLine(line.name, " ".join(f"{x},{y}" for x, y in places), dots, last))
    ticks = [x for x in _ticks(0.0, right, 6, whole=True) if 0 <= x <= right]
    said = "; ".join(f"{line.name}: {line.last} at the end" for line in lines)
    return DrawnChart(
        chart.title,
        lines,
        [(across(x), f"{x:g}") for x in ticks],
        [(along(y), f"{y:g}") for y in heights],
        None if chart.kept is None else across(chart.kept),
        f"{chart.title} over {right:g} epochs. {said}.",
    )


def _ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Round numbers around low and high."""
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    found = MaxNLocator(most, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
    return [round(float(tick), 10) for tick in found]
