"""What a run says at its end: one self-contained HTML page."""

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

from anyres.config import printable
from anyres.evaluation.page import Pairing, ReportPage, Section, Sheet
from anyres.evaluation.plots.curve import png
from anyres.evaluation.plots.line_chart import FRAME, drawn_chart
from anyres.evaluation.plots.theme import HEADLINE, ON_DARK, ON_LIGHT, TALL, WIDE
from anyres.evaluation.tables import (
    shown_count,
    shown_difference,
    shown_number,
    shown_p_value,
    shown_percent,
    shown_size,
    shown_value,
)
from anyres.flow import Metric, SizeResult
from anyres.storage import write_text

REPORT = "report.html.j2"
THUMBNAIL = 360  # pixels of a thumbnail's longer side: twice what the page shows
INKS = list(zip(ON_LIGHT, ON_DARK, strict=True))
"""Colors of models, for light and dark readers."""


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
    room.filters.update(percent=shown_percent, signed=shown_difference, count=shown_count, number=shown_number)
    room.filters.update(value=shown_value, p_value=shown_p_value, size=shown_size)
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
    shown = {metric.key: {shown_value(p.metrics[metric.key].value, metric) for p in points} for metric in others}
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
