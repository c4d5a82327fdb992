"""Quality x size x cost: measured as SizeResults, kept as a CSV file, and read to choose the size that does the job.

The picture of it is ``anyres.evaluation.plots.curve.plot``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from anyres.config import UserError
from anyres.evaluation.evaluator import EvalSettings, Evaluator, ImageScores
from anyres.flow import Batch, Cost, Estimate, Metric, Size, SizeResult
from anyres.storage import atomic_write

FIRST = ("model", "height", "width")
COST = ("n", "latency_ms", "macs", "images_per_s")
NOT_A_METRIC = {*FIRST, *COST, "latency_low_ms", "latency_high_ms", "disturbed"}
SLACK = 1e-9  # 76.4 % asked as 76.4 / 100 is met by 764 right of 1000


class EvalResult(NamedTuple):
    """One model at one size: what goes on the curve, and the scores per image behind it, of the first evaluator."""

    result: SizeResult
    scores: ImageScores


class Quality(NamedTuple):
    """Metrics of all evaluators at one size, and the scores per image of the first."""

    metrics: dict[str, Estimate]
    scores: ImageScores


def measure_quality(
    model: nn.Module,
    evaluators: Sequence[Evaluator],
    size: Size,
    batches: Callable[[], Iterable[Batch]],
    how: EvalSettings,
) -> Quality:
    """Score ``model`` with every evaluator, each on the images of ``batches()``, all of ``size``.

    Raises UserError as ``Evaluator.run`` does, and ValueError for a batch of another size, and where two evaluators
    measure the same.
    """
    scored = [evaluator.run(model, _only(size, batches()), how) for evaluator in evaluators]
    metrics: dict[str, Estimate] = {}
    for one in scored:
        found = one.estimates()
        if both := found.keys() & metrics:
            raise ValueError(f"two evaluators measure {min(both)!r}")
        metrics |= found
    return Quality(metrics, scored[0])


def _only(size: Size, batches: Iterable[Batch]) -> Iterator[Batch]:
    """``batches``, each checked to be of ``size``."""
    for batch in batches:
        found = Size(*batch.views[0].shape[-2:])
        if found != size:
            raise ValueError(f"a batch of size {found} was given for the measurement at size {size}")
        yield batch


def write_csv(results: Sequence[SizeResult], path: Path) -> None:
    """Write ``results``, of one task, as CSV, whole or not at all; numbers survive exactly.

    Columns: model, height, width, the headline metric, n, latency_ms, macs, the headline's 95 % interval, the other
    metrics, and more of the cost.
    """
    rows = [result.row() for result in results]
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    with atomic_write(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns or [*FIRST, "top1", *COST], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_csv(path: Path, known: Mapping[str, Metric]) -> list[SizeResult]:
    """The SizeResults of a file written by ``write_csv``; ``known``: metrics by key, others are read as plain numbers,
    higher being better. Raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no curve at {path}: `anyres curve` writes one")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            keys = [c for c in columns if c not in NOT_A_METRIC and not c.endswith(("_low", "_high"))]
            missing = [c for c in (*FIRST, *COST) if c not in columns] or ([] if keys else ["top1"])
            if missing:
                raise UserError(f"{path} is no curve: it lacks the column {missing[0]!r}")
            described = tuple(known.get(key, Metric(key, key, unit="")) for key in keys)
            return [_read_row(row, described) for row in rows]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is no curve: {error}") from error


def _read_row(row: Mapping[str, str], described: tuple[Metric, ...]) -> SizeResult:
    metrics = {
        metric.key: Estimate(
            float(row[metric.key]),
            float(row.get(f"{metric.key}_low") or math.nan),
            float(row.get(f"{metric.key}_high") or math.nan),
        )
        for metric in described
    }
    cost = Cost(
        float(row["latency_ms"]),
        float(row["images_per_s"]),
        int(row["macs"]),
        float(row.get("latency_low_ms") or math.nan),
        float(row.get("latency_high_ms") or math.nan),
        row.get("disturbed") == "True",
    )
    size = Size(int(row["height"]), int(row["width"]))
    return SizeResult(row["model"], size, metrics, described, int(row["n"]), cost)


class NothingFits(UserError):
    """No size keeps the bounds: an answer, with the best there is, rather than a mistake."""


def pick(results: Sequence[SizeResult], bound: float | None = None, max_ms: float | None = None) -> SizeResult:
    """The result that does the job.

    ``bound`` (of the headline metric: at least, or where lower is better at most; a share in [0, 1] where its unit is
    %) alone or with ``max_ms`` (milliseconds): the cheapest that keeps every bound, by latency, then MACs. ``max_ms``
    alone: the best within it, then the cheapest. Raises NothingFits, on one line that names the best there is, where
    none keeps the bounds; UserError where none is given.
    """
    if bound is None and max_ms is None:
        raise UserError("say what the size has to do: a least quality, a most latency in milliseconds, or both")
    if not results:
        raise UserError("there is no size to pick from: the curve is empty")
    metric = results[0].headline
    if bound is not None and metric.unit == "%" and not 0 <= bound <= 1:
        raise UserError(f"a least {metric.name} of {bound:g} is no share: write 76.4 % as 0.764")
    least = -math.inf if bound is None else (bound if metric.higher_is_better else -bound) - SLACK
    good = [r for r in results if bound is None or _quality(r) >= least]
    quick = [r for r in results if max_ms is None or r.cost.latency_ms <= max_ms]
    fit = [r for r in good if r in quick]
    if not fit:
        raise NothingFits(_nothing_fits(results, good, quick, bound, max_ms))
    return max(fit, key=_quality_first) if bound is None else min(fit, key=_cost)


def _quality(result: SizeResult) -> float:
    """The headline's value, so that more is better."""
    return result.best.value if result.headline.higher_is_better else -result.best.value


def _cost(result: SizeResult) -> tuple[float, int]:
    """Cheap first; a time that was not measured (NaN) comes last."""
    latency = result.cost.latency_ms
    return (math.inf if math.isnan(latency) else latency), result.cost.macs


def _quality_first(result: SizeResult) -> tuple[float, float, int]:
    """Good last, and of equals the cheapest last, for ``max``."""
    milliseconds, count = _cost(result)
    return _quality(result), -milliseconds, -count


def _nothing_fits(
    results: Sequence[SizeResult],
    good: Sequence[SizeResult],
    quick: Sequence[SizeResult],
    bound: float | None,
    max_ms: float | None,
) -> str:
    """One line for the user: which bounds no size keeps, and the best available."""
    metric = results[0].headline
    best = "most accurate" if metric.unit == "%" else "best"
    reaches = "reaches" if metric.higher_is_better else "comes down to"
    aims = [f"{reaches} {metric.name} {metric.text(bound)}"] if bound is not None else []
    aims += [f"runs within {max_ms:g} ms"] if max_ms is not None else []
    known = []
    if quick and bound is not None:
        within = " within it" if max_ms is not None else ""
        known.append(f"the {best}{within} is {_describe(max(quick, key=_quality_first))}")
    if max_ms is not None and (good or bound is None):
        accurate = (" that accurate" if metric.unit == "%" else " that good") if bound is not None else ""
        known.append(f"the fastest{accurate} is {_describe(min(good, key=_cost))}")
    if not known:
        known = [f"the {best} is {_describe(max(results, key=_quality_first))}"]
        known += [f"the fastest is {_describe(min(results, key=_cost))}"]
    return f"no size {' and '.join(aims)}: {'; '.join(known)}"


def _describe(result: SizeResult) -> str:
    """``size 96 of resformer_tiny (78.2 %, 5.1 ms)``."""
    value = result.headline.text(result.best.value)
    return f"size {result.size} of {result.model} ({value}, {result.cost.latency_ms:.3g} ms)"
