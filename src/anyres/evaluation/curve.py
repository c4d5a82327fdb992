"""Accuracy x size x cost: measured as Points, kept as a CSV file, and read to choose the size that does the job.

The picture of it is ``anyres.evaluation.plots.curve.plot``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from anyres.config import UserError
from anyres.evaluation.metrics import Gather, Scores, score
from anyres.evaluation.multilabel import LabelScores, score_labels
from anyres.evaluation.plots.curve import plot
from anyres.evaluation.speed import measure_costs
from anyres.flow import METRICS, Batch, Metric, Point, Size

__all__ = ["COLUMNS", "Measured", "measure", "pick", "plot", "read_csv", "write_csv"]

FIRST = ("model", "height", "width", "top1", "n", "latency_ms", "macs")  # the contract; the rest may grow
COLUMNS = (*FIRST, "top1_low", "top1_high", "top5", "loss", "images_per_s")  # of a multi-label set: see ``renamed``
SLACK = 1e-9  # 76.4 % asked as 76.4 / 100 is met by 764 right of 1000


class Measured(NamedTuple):
    """One model at one size: the Point for the curve, and the scores per image behind it, for ``compare``."""

    point: Point
    scores: Scores | LabelScores


def measure(
    name: str,
    model: nn.Module,
    size: Size,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    autocast: torch.dtype | None = None,
    gather: Gather = lambda local: local,
    budget_s: float = 1.0,
    timed: nn.Module | None = None,
    multi_label: bool = False,
) -> Measured:
    """Score ``model`` on ``batches`` of ``size``, count it and time it; ``budget_s`` seconds for each of two timings.

    ``timed``: what is counted and timed instead, where ``model`` is more than what will be used. ``multi_label``:
    whether the images have several labels. Raises UserError as ``score`` does, and ValueError for a batch of another
    size.
    """
    judge = score_labels if multi_label else score
    scores = judge(model, _only(size, batches), device, autocast, gather)
    cost = measure_costs(timed or model, [size], device, autocast, budget_s)[size]
    point = Point(
        model=name,
        height=size.height,
        width=size.width,
        n=scores.n,
        latency_ms=cost.latency_ms,
        images_per_s=cost.images_per_s,
        macs=cost.macs,
        **scores.headline(),  # type: ignore[arg-type]
    )
    return Measured(point, scores)


def _only(size: Size, batches: Iterable[Batch]) -> Iterator[Batch]:
    """``batches``, each checked to be of ``size``."""
    for batch in batches:
        found = Size(*batch.views[0].shape[-2:])
        if found != size:
            raise ValueError(f"a batch of size {found} was given for the measurement at size {size}")
        yield batch


def renamed(column: str, metric: Metric) -> str:
    """A Point's field as files call it: ``top1_low`` is ``map_low`` where mAP was measured."""
    return column.replace("top1", metric.key).replace("top5", metric.second_key)


def plain(point: Point) -> dict[str, str | int | float]:
    """A Point as plain values under the names that files use."""
    return {renamed(f.name, point.named): getattr(point, f.name) for f in fields(Point) if f.name != "metric"}


def write_csv(points: Sequence[Point], path: Path) -> None:
    """Write ``points``, of one metric, as CSV with the columns COLUMNS, replacing ``path`` at once; numbers survive
    exactly."""
    metric = points[0].named if points else METRICS["top1"]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(renamed(column, metric) for column in COLUMNS)
        rows.writerows([getattr(point, column) for column in COLUMNS] for point in points)
    draft.replace(path)


def read_csv(path: Path) -> list[Point]:
    """The Points of a file written by ``write_csv``; further columns are ignored. Raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no curve at {path}: `anyres curve` writes one")
    kinds = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in fields(Point)}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            metric = METRICS["map" if "map" in (rows.fieldnames or ()) else "top1"]
            names = {column: renamed(column, metric) for column in COLUMNS}
            missing = [name for name in names.values() if name not in (rows.fieldnames or ())]
            if missing:
                raise UserError(f"{path} is no curve: it lacks the column {missing[0]!r}")
            return [
                Point(**{column: kinds[column](row[name]) for column, name in names.items()}, metric=metric.key)
                for row in rows
            ]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is no curve: {error}") from error


def pick(points: Sequence[Point], min_top1: float | None = None, max_ms: float | None = None) -> Point:
    """The Point that does the job.

    ``min_top1`` (share in [0, 1]; of mAP where that was measured) alone or with ``max_ms`` (milliseconds): the cheapest
    that keeps every bound, by latency, then MACs. ``max_ms`` alone: the most accurate within it, then the cheapest.
    Raises UserError, on one line that names the best there is, where none keeps the bounds or none is given.
    """
    if min_top1 is None and max_ms is None:
        raise UserError("say what the size has to do: a least top-1, a most latency in milliseconds, or both")
    if min_top1 is not None and not 0 <= min_top1 <= 1:
        raise UserError(f"a least top-1 of {min_top1:g} is no share: write 76.4 % as 0.764")
    if not points:
        raise UserError("there is no size to pick from: the curve is empty")
    good = [p for p in points if min_top1 is None or p.top1 >= min_top1 - SLACK]
    quick = [p for p in points if max_ms is None or p.latency_ms <= max_ms]
    fit = [p for p in good if p in quick]
    if not fit:
        raise UserError(_nothing_fits(points, good, quick, min_top1, max_ms))
    return max(fit, key=_accuracy) if min_top1 is None else min(fit, key=_cost)


def _cost(point: Point) -> tuple[float, int]:
    """Cheap first; a time that was not measured (NaN) comes last."""
    return (math.inf if math.isnan(point.latency_ms) else point.latency_ms), point.macs


def _accuracy(point: Point) -> tuple[float, float, int]:
    """Accurate last, and of equals the cheapest last, for ``max``."""
    milliseconds, count = _cost(point)
    return point.top1, -milliseconds, -count


def _nothing_fits(
    points: Sequence[Point], good: Sequence[Point], quick: Sequence[Point], min_top1: float | None, max_ms: float | None
) -> str:
    """One line for the user: which bounds no size keeps, and the best available."""
    aims = [f"reaches {points[0].named.name} {100 * min_top1:.1f} %"] if min_top1 is not None else []
    aims += [f"runs within {max_ms:g} ms"] if max_ms is not None else []
    known = []
    if quick and min_top1 is not None:
        within = " within it" if max_ms is not None else ""
        known.append(f"the most accurate{within} is {_say(max(quick, key=_accuracy))}")
    if max_ms is not None and (good or min_top1 is None):
        accurate = " that accurate" if min_top1 is not None else ""
        known.append(f"the fastest{accurate} is {_say(min(good, key=_cost))}")
    if not known:
        known = [f"the most accurate is {_say(max(points, key=_accuracy))}"]
        known += [f"the fastest is {_say(min(points, key=_cost))}"]
    return f"no size {' and '.join(aims)}: {'; '.join(known)}"


def _say(point: Point) -> str:
    """``size 96 of resformer_tiny (78.2 %, 5.1 ms)``."""
    size = Size(point.height, point.width)
    return f"size {size} of {point.model} ({100 * point.top1:.1f} %, {point.latency_ms:.3g} ms)"
