"""What a run says at its end: one self-contained HTML page, and a table for the terminal."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image
from rich.table import Table

from anyres.evaluation.confusion import Confusion
from anyres.evaluation.metrics import Comparison
from anyres.evaluation.multilabel import ClassRow, LabelScores
from anyres.evaluation.plots.curve import png
from anyres.evaluation.plots.heatmap import heat_map
from anyres.evaluation.plots.theme import HEADLINE, ON_DARK, ON_LIGHT, TALL, WIDE
from anyres.evaluation.probe import Probed
from anyres.flow import METRICS, Point, Size

THUMBNAIL = 360  # pixels of a thumbnail's longer side: twice what the page shows
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Pairing:
    """Two models by name, compared on the same images at one size: ``first`` minus ``second``."""

    first: str
    second: str
    size: Size
    comparison: Comparison

    @property
    def verdict(self) -> str:
        """In words: who is better, or that nobody can tell."""
        if self.comparison.inside_noise:
            return "inside the noise"
        return f"clear: {self.first if self.comparison.difference > 0 else self.second} is better"


@dataclass(frozen=True)
class Prediction:
    """What ``model`` took an image for at ``size``: a class name and its probability in [0, 1]."""

    model: str
    size: Size
    label: str
    probability: float


@dataclass(frozen=True)
class Sample:
    """One test image, as a person would see it, its true class, and what the models made of it."""

    name: str
    image: Image.Image
    truth: str
    predictions: Sequence[Prediction]

    @property
    def models(self) -> list[str]:
        """The models that looked at it, in the order given."""
        return list(dict.fromkeys(p.model for p in self.predictions))

    @property
    def rows(self) -> list[tuple[Size, list[Prediction | None]]]:
        """Per size, one prediction per model; None where a model was not asked at that size."""
        found = {(p.size, p.model): p for p in self.predictions}
        sizes = dict.fromkeys(p.size for p in self.predictions)
        return [(size, [found.get((size, model)) for model in self.models]) for size in sizes]


@dataclass(frozen=True)
class ReportPage:
    """Everything the page shows; plain text throughout, escaped on the way out.

    ``claim`` is one sentence. ``notes`` are sentences about the data (images that could not be read, ...), ``facts``
    pairs of a name and a value about the run (seed, epochs, pixels processed, seconds, versions). ``mistakes``: what
    one model took for what at one size; ``labels``: of a multi-label set, the classes it ranks worst at one size.
    """

    title: str
    claim: str
    points: Sequence[Point]
    comparisons: Sequence[Pairing] = ()
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    train_sizes: Mapping[str, Sequence[Size]] = field(default_factory=dict)
    mistakes: tuple[Size, Confusion] | None = None
    labels: tuple[Size, Sequence[ClassRow]] | None = None


def write_html(path: Path, page: ReportPage) -> None:
    """Write ``page`` to ``path`` as one file that asks for nothing else: no script, no font, no request.

    Raises UserError where there are no points.
    """
    room = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    room.filters.update(percent=_percent, signed=_signed, count=_count, number=_number)
    room.filters.update(p_value=_p_value, size=_size)
    template = room.from_string(resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    html = template.render(
        page=page,
        pictures=_pictures(page),
        alt=_alt(page.points),
        inks=list(zip(ON_LIGHT, ON_DARK, strict=True)),
        groups=_by_model(page.points).items(),
        pairs=_by_models(page.comparisons).items(),
        scale=_scale(page.points),
        metric=page.points[0].named if page.points else METRICS["top1"],
        samples=[(sample, _thumbnail(sample.image)) for sample in page.samples],
        maps=_maps(page.mistakes[1]) if page.mistakes else [],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(html, encoding="utf-8")
    draft.replace(path)


def console_table(points: Sequence[Point], comparisons: Sequence[Pairing] = ()) -> Table:
    """The same numbers for a terminal: a row per model and size, and the difference where a pairing starts there."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    metric = points[0].named.name if points else "top-1"
    for name in ("size", metric, "95 % interval", "loss", "ms", "images/s", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    if comparisons:
        table.add_column("difference in points")
    pairings = {(p.first, p.size): p for p in comparisons}
    for point in points:
        size = Size(point.height, point.width)
        pairing = pairings.get((point.model, size))
        table.add_row(
            _plain(point.model),
            str(size),
            _percent(point.top1),
            f"{_percent(point.top1_low)} {DASH} {_percent(point.top1_high)}",
            f"{point.loss:.3f}",
            _number(point.latency_ms),
            _number(point.images_per_s),
            _count(point.macs),
            *([_difference(pairing)] if comparisons else []),
        )
    return table


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


def console_mistakes(mistakes: Confusion, size: Size, most: int = 5) -> list[str]:
    """The worst classes and the most confused pairs at one size, as two lines for a terminal; none if all is right."""
    worst, pairs = mistakes.worst(most), mistakes.confused(most)
    if not worst:
        return []
    classes = ", ".join(f"{one.name} {_percent(one.accuracy)} % of {one.n}" for one in worst)
    taken = ", ".join(f"{pair.count} {pair.truth} for {pair.taken_for}" for pair in pairs)
    return [f"worst classes at {size} px: {classes}", f"most often mistaken at {size} px: {taken}"]


def console_labels(scores: LabelScores, classes: Sequence[str], size: Size) -> list[str]:
    """F1 and the classes ranked worst at one size, as lines for a terminal."""
    told = [f"F1 at {size} px: {_percent(scores.f1)} %, of decisions at probability 0.5"]
    worst = ", ".join(f"{r.name} {_percent(r.average_precision)} % of {r.n}" for r in scores.worst(classes))
    return [*told, f"worst classes at {size} px, by average precision: {worst}"] if worst else told


def _difference(pairing: Pairing | None) -> str:
    """``+1.8 to single-size (inside the noise)``, or nothing."""
    if pairing is None:
        return ""
    verdict = "inside the noise" if pairing.comparison.inside_noise else "clear"
    return f"{_signed(pairing.comparison.difference)} to {_plain(pairing.second)} ({verdict})"


def _plain(text: str) -> str:
    """``text`` with rich's markup made harmless."""
    return text.replace("[", "\\[")


def _pictures(page: ReportPage) -> list[tuple[str, str, int, int]]:
    """The curve for every reader: media query, data address, width and height; the wide light one last."""
    themes = ((True, " and (prefers-color-scheme: dark)"), (False, ""))
    result = []
    for sheet, width in ((TALL, "(max-width: 640px)"), (WIDE, "(min-width: 1px)")):
        for dark, theme in themes:
            small, _, _ = _few_colours(png(page.points, "", page.train_sizes, dark, sheet))
            uri = _data_uri(small, "png")
            result.append((width + theme, uri, round(100 * sheet.width), round(100 * (sheet.height - HEADLINE))))
    return result


def _maps(mistakes: Confusion) -> list[tuple[str, int, int]]:
    """The heat map for dark and for light readers: data address, width and height; nothing for too many classes."""
    result = []
    for drawn in (heat_map(mistakes, dark=True), heat_map(mistakes)):
        if drawn is not None:
            small, width, height = _few_colours(drawn)
            result.append((_data_uri(small, "png"), width * 2 // 3, height * 2 // 3))  # drawn at 1.5 times the density
    return result


def _few_colours(picture: bytes) -> tuple[bytes, int, int]:
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


def _by_model(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points by model, in the order the models first appear."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.model, []).append(point)
    return groups


def _by_models(pairings: Sequence[Pairing]) -> dict[tuple[str, str], list[Pairing]]:
    """Pairings by the two models, in the order they first appear."""
    groups: dict[tuple[str, str], list[Pairing]] = {}
    for pairing in pairings:
        groups.setdefault((pairing.first, pairing.second), []).append(pairing)
    return groups


def _alt(points: Sequence[Point]) -> str:
    """The curve in words, for readers who do not see it."""
    parts = [
        f"{model}: " + ", ".join(f"{_percent(p.top1)} % at {Size(p.height, p.width)}" for p in group)
        for model, group in _by_model(points).items()
    ]
    metric = points[0].named
    return f"{'Top-1 accuracy' if metric.key == 'top1' else metric.name} by image size. " + ". ".join(parts) + "."


def _scale(points: Sequence[Point]) -> tuple[float, float]:
    """Low end and length, both shares, of the interval bars' common scale, at whole steps of five points."""
    low = math.floor(20 * min(p.top1_low for p in points)) / 20
    high = math.ceil(20 * max(p.top1_high for p in points)) / 20
    return low, max(high - low, 0.05)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(points: float) -> str:
    """``+1.8`` or, with a true minus sign, ``-1.8``."""
    return f"{points:+.1f}".replace("-", MINUS)


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


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _size(size: Sequence[int]) -> str:
    """Height and width -> ``224`` or ``320 x 192`` with a true multiplication sign."""
    return str(Size(*size)).replace("x", "\N{THIN SPACE}\N{MULTIPLICATION SIGN}\N{THIN SPACE}")
