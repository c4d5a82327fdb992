"""What a run says at its end: one self-contained HTML page, and a table for the terminal."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from PIL import Image
from rich.table import Table

from anyres.config import printable
from anyres.evaluation.page import Pairing, ReportPage, Section, Sheet
from anyres.evaluation.plots.curve import png
from anyres.evaluation.plots.line_chart import FRAME, drawn_chart
from anyres.evaluation.plots.theme import HEADLINE, ON_DARK, ON_LIGHT, TALL, WIDE
from anyres.evaluation.probe import Probed
from anyres.flow import Cost, Estimate, Metric, Size, SizeResult
from anyres.storage import write_text

REPORT = "report.html.j2"
THUMBNAIL = 360  # pixels of a thumbnail's longer side: twice what the page shows
INKS = list(zip(ON_LIGHT, ON_DARK, strict=True))
"""Colors of models, for light and dark readers."""
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def write_html(path: Path, page: ReportPage) -> None:
    """Write ``page`` to ``path`` as one file that asks for nothing else: no script, no font, no request.

    Raises UserError where there are no points.
    """
    html = (
        page_templates()
        .get_template(REPORT)
        .render(
            page=page,
            pictures=_pictures(page),
            alt=_alt(page.points),
            inks=INKS,
            ink={model: i % len(ON_LIGHT) for i, model in enumerate(_by_model(page.points))},
            groups=_by_model(page.points).items(),
            pairs=_by_models(page.comparisons).items(),
            adjusted=any(pair.p_adjusted is not None for pair in page.comparisons),
            scale=_scale(page.points),
            columns=_columns(page.points),
            samples=[(sample, _thumbnail(sample.image)) for sample in page.samples],
            sections=[(section, _maps(section), anchor) for section, anchor in _anchors(page)],
            contents=_contents(page),
            frame=FRAME,
            charts=[drawn_chart(chart) for chart in page.charts],
            sheet=_sheet(page.sheet) if page.sheet else None,
        )
    )
    write_text(path, html)


def page_templates(templates: Mapping[str, str] = MappingProxyType({})) -> Environment:
    """Where pages are made, of the report's template and others by name.

    A page of the same look extends ``report.html.j2`` and fills its block ``page``; it is rendered with ``page`` (title
    and claim) and ``inks``.
    """
    own = resources.files(__package__).joinpath(REPORT).read_text(encoding="utf-8")
    room = Environment(
        loader=DictLoader({REPORT: own, **templates}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    room.filters.update(percent=_percent, signed=_signed, count=_count, number=_number, value=_value)
    room.filters.update(p_value=shown_p_value, size=_size)
    return room


@dataclass(frozen=True)
class _Columns:
    """What the table of sizes shows beside headline and interval, and in a sentence what is the same in each row."""

    head: Metric
    metrics: Sequence[Metric]
    time: bool
    macs: bool
    images: bool
    alike: str

    @property
    def count(self) -> int:
        """All columns of the table."""
        return 4 + 2 * self.time + self.macs + len(self.metrics) + self.images


def _columns(points: Sequence[SizeResult]) -> _Columns:
    """A column whose cells all say the same is said once instead."""
    head, *others = points[0].described
    shown = {metric.key: {_value(p.metrics[metric.key].value, metric) for p in points} for metric in others}
    alike = [metric for metric in others if len(points) > 1 and len(shown[metric.key]) == 1]
    counts = {p.n for p in points}
    said = [f"{next(iter(counts)):,} images"] if len(counts) == 1 else []
    for metric in alike:
        said.append(f"{metric.name} {next(iter(shown[metric.key]))} {metric.unit}".rstrip())
    return _Columns(
        head,
        [metric for metric in others if metric not in alike],
        any(math.isfinite(p.cost.latency_ms) for p in points),
        any(p.cost.macs for p in points),
        len(counts) > 1,
        f" Everywhere: {', '.join(said)}." if said else "",
    )


def _anchors(page: ReportPage) -> list[tuple[Section, str]]:
    """The task's sections with their addresses within the page."""
    return [(section, section.anchor or f"section{i}") for i, section in enumerate(page.sections, 1)]


def _contents(page: ReportPage) -> list[tuple[str, str]]:
    """Address and name of every section that the page has, in their order."""
    head = page.points[0].headline if page.points else None
    found = [
        ("curve", "Accuracy" if head and head.key == "top1" else head.name if head else "", True),
        ("sizes", "Sizes", True),
        ("pairs", "Comparison", bool(page.comparisons)),
        *((anchor, section.title.partition(",")[0], True) for section, anchor in _anchors(page)),
        ("images", "Test images", bool(page.samples)),
        ("training", "Training", bool(page.charts or page.sheet)),
        ("data", "Data", bool(page.notes)),
        ("facts", "Run", bool(page.facts)),
        ("next", "Next", bool(page.commands)),
    ]
    return [(anchor, name) for anchor, name, there in found if there]


def _sheet(sheet: Sheet) -> tuple[str, int, int]:
    """The picture as a data address, with its width and height in pixels."""
    with Image.open(io.BytesIO(sheet.jpeg)) as image:
        return _data_uri(sheet.jpeg, "jpeg"), image.width, image.height


def _shown(value: Any) -> Any:
    """What the page writes for a value: of a name that is no UTF-8, or holds control characters, a spelling of it."""
    return printable(value) if type(value) is str else value


def console_table(points: Sequence[SizeResult], comparisons: Sequence[Pairing] = ()) -> Table:
    """The same numbers for a terminal: a row per model and size, and the difference where a pairing starts there."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    head, *others = points[0].described if points else (Metric("top1", "top-1"),)
    others = [metric for metric in others if metric.unit != "%"]
    for name in ("size", _heading(head), "95 % interval", *map(_heading, others), "ms", "images/s", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    if comparisons:
        table.add_column("difference in points" if head.unit == "%" else f"difference {head.unit}".rstrip())
    pairings = {(p.first, p.size): p for p in comparisons}
    for point in points:
        pairing = pairings.get((point.model, point.size))
        table.add_row(
            point.model,
            str(point.size),
            _value(point.best.value, head),
            _interval(point.best, head),
            *(_value(point.metrics[metric.key].value, metric) for metric in others),
            _latency(point.cost),
            _number(point.cost.images_per_s),
            _count(point.cost.macs),
            *([_difference(pairing, head)] if comparisons else []),
        )
    return table


def _heading(metric: Metric) -> str:
    """``top-1``, a share; ``MAE px``."""
    return metric.name if metric.unit == "%" else f"{metric.name} {metric.unit}".rstrip()


def _interval(estimate: Estimate, metric: Metric) -> str:
    """``74.1 - 78.6``, or a dash where no interval was worked out."""
    if math.isnan(estimate.low):
        return DASH
    return f"{_value(estimate.low, metric)} {DASH} {_value(estimate.high, metric)}"


def _latency(cost: Cost) -> str:
    """Milliseconds; with the range of the rounds where something disturbed them."""
    if not cost.disturbed:
        return _number(cost.latency_ms)
    return (
        f"{_number(cost.latency_ms)} ({_number(cost.latency_low_ms)} {DASH} {_number(cost.latency_high_ms)}, disturbed)"
    )


def probe_table(found: Sequence[Probed]) -> Table:
    """What probes say of frozen features, for a terminal: a row for each."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("probe")
    for name in ("top-1", "95 % interval", "top-5"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        interval = f"{_percent(one.low)} {DASH} {_percent(one.high)}"
        table.add_row(one.name, _percent(one.top1), interval, _percent(one.top5))
    return table


def _difference(pairing: Pairing | None, metric: Metric) -> str:
    """``+1.8 to single-size (inside the noise)``, or nothing."""
    if pairing is None:
        return ""
    verdict = "clear" if pairing.winner else "inside the noise"
    return f"{_signed(pairing.comparison.difference, metric.unit == '%')} to {pairing.second} ({verdict})"


def _pictures(page: ReportPage) -> list[tuple[str, str, int, int]]:
    """The curve for every reader: media query, data address, width and height; the wide light one last."""
    themes = ((True, " and (prefers-color-scheme: dark)"), (False, ""))
    result = []
    for sheet, width in ((TALL, "(max-width: 640px)"), (WIDE, "(min-width: 1px)")):
        for dark, theme in themes:
            small, _, _ = _few_colors(png(page.points, "", page.train_sizes, dark, sheet))
            uri = _data_uri(small, "png")
            result.append((width + theme, uri, round(100 * sheet.width), round(100 * (sheet.height - HEADLINE))))
    return result


def _maps(section: Section) -> list[tuple[str, int, int]]:
    """A section's picture for dark and for light readers: data address, width and height; nothing without one."""
    result = []
    for drawn in reversed(section.pictures or ()):
        small, width, height = _few_colors(drawn)
        result.append((_data_uri(small, "png"), width * 2 // 3, height * 2 // 3))  # drawn at 1.5 times the density
    return result


def _few_colors(picture: bytes) -> tuple[bytes, int, int]:
    """A PNG with at most 256 colours, and its width and height in pixels."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), image.width, image.height


def _data_uri(content: bytes, kind: str) -> str:
    """``content`` as an address that carries its picture with it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _thumbnail(image: Image.Image) -> tuple[str, int, int]:
    """A small JPEG as a data address, with its width and height in pixels."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    return _data_uri(buffer.getvalue(), "jpeg"), small.width, small.height


def _by_model(points: Sequence[SizeResult]) -> dict[str, list[SizeResult]]:
    """Points by model, in the order the models first appear."""
    groups: dict[str, list[SizeResult]] = {}
    for point in points:
        groups.setdefault(point.model, []).append(point)
    return groups


def _by_models(pairings: Sequence[Pairing]) -> dict[tuple[str, str], list[Pairing]]:
    """Pairings by the two models, in the order they first appear."""
    groups: dict[tuple[str, str], list[Pairing]] = {}
    for pairing in pairings:
        groups.setdefault((pairing.first, pairing.second), []).append(pairing)
    return groups


def _alt(points: Sequence[SizeResult]) -> str:
    """The curve in words, for readers who do not see it."""
    parts = [
        f"{model}: " + ", ".join(f"{p.headline.text(p.best.value)} at {p.size}" for p in group)
        for model, group in _by_model(points).items()
    ]
    metric = points[0].headline
    return f"{'Top-1 accuracy' if metric.key == 'top1' else metric.name} by image size. " + ". ".join(parts) + "."


def _scale(points: Sequence[SizeResult]) -> tuple[float, float]:
    """Low end and length of the interval bars' common scale; of shares at whole steps of five points."""
    low = min(_or(p.best.low, p.best.value) for p in points)
    high = max(_or(p.best.high, p.best.value) for p in points)
    if points[0].headline.unit == "%":
        low, high = math.floor(20 * low) / 20, math.ceil(20 * high) / 20
        return low, max(high - low, 0.05)
    return low, (high - low) or 1.0


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


def _value(value: float, metric: Metric) -> str:
    """A metric without its unit: ``76.4`` of a share, three digits of a loss, three significant ones of another."""
    if math.isnan(value):
        return DASH
    if metric.unit == "%":
        return _percent(value)
    return f"{value:.3f}" if metric.key == "loss" else f"{metric.scale * value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(difference: float, in_points: bool = True) -> str:
    """``+1.8`` or, with a true minus sign, ``-1.8``; three significant digits where it is not in points."""
    return (f"{difference:+.1f}" if in_points else f"{difference:+.3g}").replace("-", MINUS)


def _number(value: float) -> str:
    """Three digits are enough for a measured time: ``3.14``, ``31.4``, ``1,300``; a dash for what was not measured."""
    if not math.isfinite(value):
        return DASH
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def _count(value: int) -> str:
    """``1.26 G``, ``412 M``, ``87 k``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return str(value)


def shown_p_value(value: float) -> str:
    """``0.012``, or ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _size(size: Sequence[int]) -> str:
    """Height and width -> ``224`` or ``320 x 192`` with a true multiplication sign."""
    return str(Size(*size)).replace("x", "\N{THIN SPACE}\N{MULTIPLICATION SIGN}\N{THIN SPACE}")
