"""The size that does the job, of those on a curve. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anyres.config import UserError
from anyres.flow import SizeResult

SLACK = 1e-9  # 76.4 % asked as 76.4 / 100 is met by 764 right of 1000


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
    good = [r for r in results if bound is None or r.quality >= least]
    quick = [r for r in results if max_ms is None or r.cost.latency_ms <= max_ms]
    fit = [r for r in good if r in quick]
    if not fit:
        raise NothingFits(_nothing_fits(results, good, quick, bound, max_ms))
    return max(fit, key=_quality_first) if bound is None else min(fit, key=_cost)


def _cost(result: SizeResult) -> tuple[float, int]:
    """Cheap first; a time that was not measured (NaN) comes last."""
    latency = result.cost.latency_ms
    return (math.inf if math.isnan(latency) else latency), result.cost.macs


def _quality_first(result: SizeResult) -> tuple[float, float, int]:
    """Good last, and of equals the cheapest last, for ``max``."""
    milliseconds, count = _cost(result)
    return result.quality, -milliseconds, -count


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
