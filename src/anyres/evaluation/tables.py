"""Results as text: tables for a terminal, and how numbers are written there and in pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from anyres.evaluation.page import Pairing
from anyres.evaluation.probe import Probed
from anyres.flow import Cost, Estimate, Metric, Size, SizeResult

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


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
            shown_value(point.best.value, head),
            _interval(point.best, head),
            *(shown_value(point.metrics[metric.key].value, metric) for metric in others),
            _latency(point.cost),
            shown_number(point.cost.images_per_s),
            shown_count(point.cost.macs),
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
    return f"{shown_value(estimate.low, metric)} {DASH} {shown_value(estimate.high, metric)}"


def _latency(cost: Cost) -> str:
    """Milliseconds; with the range of the rounds where something disturbed them."""
    median, low, high = map(shown_number, (cost.latency_ms, cost.latency_low_ms, cost.latency_high_ms))
    return f"{median} ({low} {DASH} {high}, disturbed)" if cost.disturbed else median


def _difference(pairing: Pairing | None, metric: Metric) -> str:
    """``+1.8 to single-size (inside the noise)``, or nothing."""
    if pairing is None:
        return ""
    verdict = "clear" if pairing.winner else "inside the noise"
    return f"{shown_difference(pairing.comparison.difference, metric.unit == '%')} to {pairing.second} ({verdict})"


def probe_table(found: Sequence[Probed]) -> Table:
    """What probes say of frozen features, for a terminal: a row for each."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("probe")
    for name in ("top-1", "95 % interval", "top-5"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        interval = f"{shown_percent(one.low)} {DASH} {shown_percent(one.high)}"
        table.add_row(one.name, shown_percent(one.top1), interval, shown_percent(one.top5))
    return table


def shown_value(value: float, metric: Metric) -> str:
    """A metric without its unit: ``76.4`` of a share, three digits of a loss, three significant ones of another."""
    if math.isnan(value):
        return DASH
    if metric.unit == "%":
        return shown_percent(value)
    return f"{value:.3f}" if metric.key == "loss" else f"{metric.scale * value:.4g}"


def shown_percent(share: float) -> str:
    return f"{100 * share:.1f}"


def shown_difference(difference: float, in_points: bool = True) -> str:
    """``+1.8`` or, with a true minus sign, ``-1.8``; three significant digits where it is not in points."""
    return (f"{difference:+.1f}" if in_points else f"{difference:+.3g}").replace("-", MINUS)


def shown_number(value: float) -> str:
    """Three digits are enough for a measured time: ``3.14``, ``31.4``, ``1,300``; a dash for what was not measured."""
    if not math.isfinite(value):
        return DASH
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def shown_count(value: int) -> str:
    """``1.26 G``, ``412 M``, ``87 k``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return str(value)


def shown_p_value(value: float) -> str:
    """``0.012``, or ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def shown_size(size: Sequence[int]) -> str:
    """Height and width -> ``224`` or ``320 x 192`` with a true multiplication sign."""
    return str(Size(*size)).replace("x", "\N{THIN SPACE}\N{MULTIPLICATION SIGN}\N{THIN SPACE}")
