"""The picture of a curve: accuracy against image size, and against time, one color per model, labelled in place."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from anyres.config import UserError
from anyres.evaluation.plots.label_placement import Labeller, spread
from anyres.evaluation.plots.theme import DARK, DPI, HEADLINE, LIGHT, WIDE, Palette, Sheet, drawn
from anyres.flow import Estimate, Size, SizeResult
from anyres.storage import write_bytes

TIMES = "\N{MULTIPLICATION SIGN}"


def plot(
    points: Sequence[SizeResult],
    path: Path,
    title: str | None = None,
    train_sizes: Mapping[str, Sequence[Size]] | None = None,
    dark: bool = False,
) -> None:
    """Write the wide picture of ``png`` to ``path``. Raises UserError for no points."""
    write_bytes(path, png(points, title, train_sizes, dark))


def png(
    points: Sequence[SizeResult],
    title: str | None = None,
    train_sizes: Mapping[str, Sequence[Size]] | None = None,
    dark: bool = False,
    sheet: Sheet = WIDE,
) -> bytes:
    """Draw ``points`` as a PNG: 2400 x 1040 pixels on WIDE, 1080 x 1680 on TALL, less without title.

    Left: the headline metric against the side of the image (of a non-square one, the root of its area) with
    its 95 % band. Right: the same against the time of one image. Sizes in ``train_sizes[model]`` are filled. Raises
    UserError for no points.
    """
    if not points:
        raise UserError("there is nothing to draw: the curve is empty")
    ink = DARK if dark else LIGHT
    if title is None:
        metric = points[0].headline
        title = f"{'Accuracy' if metric.key == 'top1' else metric.name} at every image size"
    if not title:
        sheet = replace(sheet, top=sheet.top - HEADLINE, height=sheet.height - HEADLINE)
    figure = Figure(figsize=(sheet.width, sheet.height), dpi=DPI, facecolor=ink.paper)
    canvas = FigureCanvasAgg(figure)
    series = _series(points, ink, train_sizes or {})
    _words(figure, sheet, title, series, ink)
    renderer: RendererBase = canvas.get_renderer()  # type: ignore[no-untyped-call]
    names = [figure.text(0, 0, drawn(s.title, 60), fontsize=10.5, fontweight="bold", color=s.color) for s in series]
    widest = max(name.get_window_extent(renderer).width for name in names) / figure.bbox.width
    left, right = _panels(figure, sheet, min(widest * sheet.width, 2.4), ink, points)
    _limits(left, right, points)
    labeller = Labeller(renderer)
    _by_size(left, series, ink, labeller)
    _by_time(right, series, ink, labeller)
    heights = [left.transData.transform((0, s.end))[1] for s in series]
    edge = left.get_position().x1
    for name, height in zip(names, spread(heights, 0.2 * DPI), strict=True):
        name.set(position=(edge + 0.1 / sheet.width, height / figure.bbox.height), va="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=ink.paper)
    return buffer.getvalue()


@dataclass(frozen=True)
class Series:
    """One model's points in one color."""

    model: str
    color: str
    points: Sequence[SizeResult]
    trained: Mapping[str, Sequence[Size]]
    mark: float  # diameter in typographic points; larger below, so that equal points show as rings

    @property
    def title(self) -> str:
        """The model's name, cut where it is too long for the margin."""
        return self.model if len(self.model) <= 26 else self.model[:25] + "…"

    @property
    def squares(self) -> list[SizeResult]:
        """Square sizes, ascending: the line."""
        return sorted((p for p in self.points if p.size.height == p.size.width), key=lambda p: p.size.width)

    @property
    def end(self) -> float:
        """The headline metric where the line ends; of the widest point where there is no line."""
        return _shown((self.squares or sorted(self.points, key=_area))[-1]).value

    def face(self, point: SizeResult, ink: Palette) -> str:
        """Filled where the model was trained at this size, hollow elsewhere."""
        return self.color if point.size in self.trained.get(self.model, ()) else ink.paper

    def dot(self, axes: Axes, x: float, point: SizeResult, ink: Palette) -> None:
        """Mark ``point`` at ``x``: a circle for a square size, a diamond for any other."""
        marker, face = "o" if point.size.height == point.size.width else "D", self.face(point, ink)
        axes.plot([x], [_shown(point).value], marker, ms=self.mark, mfc=face, mec=self.color, mew=1.7, zorder=4)


def _area(point: SizeResult) -> int:
    return point.size.height * point.size.width


def _shown(point: SizeResult) -> Estimate:
    """The headline metric as it is drawn, in its unit; where it has no interval, the value itself."""
    scale, (value, low, high) = point.headline.scale, point.best
    return Estimate(*(scale * (value if math.isnan(x) else x) for x in (value, low, high)))


def _series(points: Sequence[SizeResult], ink: Palette, trained: Mapping[str, Sequence[Size]]) -> list[Series]:
    """One Series per model, in the order they first appear."""
    models = list(dict.fromkeys(p.model for p in points))
    return [
        Series(
            model=model,
            color=ink.models[i % len(ink.models)],
            points=[p for p in points if p.model == model],
            trained=trained,
            mark=9 - 3 * i / max(len(models) - 1, 1),
        )
        for i, model in enumerate(models)
    ]


def _words(figure: Figure, sheet: Sheet, title: str, series: Sequence[Series], ink: Palette) -> None:
    """Title above, key to the marks below."""
    left, right = sheet.left / sheet.width, 1 - sheet.right / sheet.width
    top = 1 - 0.33 / sheet.height
    figure.text(left, top, drawn(title), fontsize=15, fontweight="bold", color=ink.text, va="center")
    points = [p for s in series for p in s.points]
    marks = []
    if any(s.trained.get(s.model) for s in series):
        marks.append("● trained at this size    ○ never seen in training")
    if any(p.size.height != p.size.width for p in points):
        marks.append(f"◇ not square, height {TIMES} width")
    if not all(math.isnan(p.best.low) for p in points):
        marks.append("band: 95 % interval")
    if not points[0].headline.higher_is_better:
        marks.append("lower is better")
    n = sorted({p.n for p in points})
    images = f"{n[0]:,} images" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,} images"
    lines = ["    ".join(marks)] if sheet.columns or len(marks) < 2 else [marks[0], "    ".join(marks[1:])]
    for i, line in enumerate(lines):
        height = (0.18 + 0.25 * (len(lines) - 1 - i)) / sheet.height
        figure.text(left, height, line, fontsize=9.5, color=ink.quiet, va="center")
    figure.text(right, 0.18 / sheet.height, images, fontsize=9.5, color=ink.quiet, va="center", ha="right")


def _panels(
    figure: Figure, sheet: Sheet, margin: float, ink: Palette, points: Sequence[SizeResult]
) -> tuple[Axes, Axes]:
    """Two axes over one vertical scale, of the headline metric of ``points``; ``margin`` inches beside the first are
    for the models' names."""
    metric = points[0].headline
    across, along = sheet.width - sheet.left - sheet.right, sheet.height - sheet.top - sheet.foot
    if sheet.columns:
        room = across - margin - sheet.between
        first_box = (sheet.left, sheet.foot, 0.56 * room, along)
        second_box = (sheet.width - sheet.right - 0.44 * room, sheet.foot, 0.44 * room, along)
    else:
        half = (along - sheet.between) / 2
        first_box = (sheet.left, sheet.foot + half + sheet.between, across - margin - 0.1, half)
        second_box = (sheet.left, sheet.foot, across, half)
    first = figure.add_axes(sheet.share(*first_box))
    second = figure.add_axes(sheet.share(*second_box), sharey=first)
    second.tick_params(labelleft=not sheet.columns)
    time = "time for one image (ms, disturbed)" if any(p.cost.disturbed for p in points) else "time for one image (ms)"
    for axes, words in ((first, "image size (pixels)"), (second, time)):
        unit = f" ({metric.unit})" if metric.unit else ""
        axes.set_title(
            drawn(f"{metric.name}{unit} against {words}"), loc="left", fontsize=10.5, color=ink.quiet, pad=12
        )
        axes.set_facecolor(ink.paper)
        axes.grid(color=ink.grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=10, colors=ink.quiet, pad=6)
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.spines["bottom"].set_color(ink.grid)
    return first, second


def _limits(left: Axes, right: Axes, points: Sequence[SizeResult]) -> None:
    """Scales and ticks: every square size that has room on the left, round numbers on the right."""
    low, high = min(_shown(p).low for p in points), max(_shown(p).high for p in points)
    if points[0].headline.unit == "%":
        air = max(0.06 * (high - low), 0.5)
        left.set_ylim(max(low - air, -1), min(high + air, 101))
    else:
        air = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        left.set_ylim(low - air, high + air)
    whole = points[0].headline.unit == "%"
    left.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=whole))
    sides = [math.sqrt(p.size.height * p.size.width) for p in points]
    reach = max(max(sides) - min(sides), 16)
    left.set_xlim(min(sides) - 0.045 * reach, max(sides) + 0.03 * reach)
    ticks: list[float] = []
    for side in sorted({p.size.width for p in points if p.size.height == p.size.width}):
        if not ticks or side - ticks[-1] > 0.055 * reach:
            ticks.append(side)
    left.xaxis.set_major_locator(FixedLocator(ticks or [round(side) for side in sides[:1]]))
    times = [p.cost.latency_ms for p in points if p.cost.latency_ms > 0]
    if not times:
        return
    right.set_xscale("log")
    stretch = max((max(times) / min(times)) ** 0.09, 1.06)
    start, stop = min(times) / stretch, max(times) * stretch
    right.set_xlim(start, stop)
    right.xaxis.set_major_locator(FixedLocator(_round_numbers(start, stop)))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _round_numbers(start: float, stop: float) -> list[float]:
    """Between three and about eight round numbers for a logarithmic axis, as the span allows."""
    exponents = range(math.floor(math.log10(start)), math.ceil(math.log10(stop)) + 1)
    found: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [d * 10.0**e for e in exponents for d in digits if start <= d * 10.0**e <= stop]
        if len(found) >= 4:
            break
    if len(found) < 2:  # of a span shorter than the steps above
        found = [float(tick) for tick in MaxNLocator(4).tick_values(start, stop) if start <= tick <= stop]
    return found


def _by_size(axes: Axes, series: Sequence[Series], ink: Palette, labeller: Labeller) -> None:
    """Lines over square sizes with their bands; diamonds for the others, each with its size."""
    for s in series:
        x = [float(p.size.width) for p in s.squares]
        low, high = [_shown(p).low for p in s.squares], [_shown(p).high for p in s.squares]
        axes.fill_between(x, low, high, color=s.color, alpha=0.13, linewidth=0, zorder=1)
        y = [_shown(p).value for p in s.squares]
        axes.plot(x, y, color=s.color, linewidth=2.2, zorder=3, solid_capstyle="round")
        labeller.avoid(axes, x, y)
        for point in s.points:
            side = math.sqrt(point.size.height * point.size.width)
            s.dot(axes, side, point, ink)
            labeller.avoid(axes, [side], [_shown(point).value])
            if point.size.height != point.size.width:
                low_high = _shown(point).low, _shown(point).high
                axes.plot([side, side], low_high, color=s.color, alpha=0.5, linewidth=1.2, zorder=2)
                labeller.avoid(axes, [side, side], low_high)
    others = [p for s in series for p in s.points if p.size.height != p.size.width]
    for size in dict.fromkeys(p.size for p in others):
        top = max(_shown(p).high for p in others if p.size == size)
        labeller.put(axes, math.sqrt(size.height * size.width), top, f"{size.height}{TIMES}{size.width}", ink.text)


def _by_time(axes: Axes, series: Sequence[Series], ink: Palette, labeller: Labeller) -> None:
    """The same points against milliseconds, each with its size where there is room for it."""
    for s in series:
        squares = [p for p in s.squares if p.cost.latency_ms > 0]
        x, y = [p.cost.latency_ms for p in squares], [_shown(p).value for p in squares]
        axes.plot(x, y, color=s.color, linewidth=1.2, alpha=0.45, zorder=2)
        labeller.avoid(axes, x, y)
        for point in (p for p in s.points if p.cost.latency_ms > 0):
            s.dot(axes, point.cost.latency_ms, point, ink)
            labeller.avoid(axes, [point.cost.latency_ms], [_shown(point).value])
    for s in series:
        for p in (p for p in s.points if p.cost.latency_ms > 0):
            words = str(p.size.width) if p.size.height == p.size.width else f"{p.size.height}{TIMES}{p.size.width}"
            labeller.put(axes, p.cost.latency_ms, _shown(p).value, words, s.color)
