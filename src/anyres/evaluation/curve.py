"""Quality x size: measured as SizeResults, one for each size.

``curve_file`` keeps them as CSV, ``choice`` picks the size that does the job, ``plots.curve.plot`` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import nn

from anyres.evaluation.evaluator import EvalSettings, Evaluator, ImageScores
from anyres.flow import Batch, Estimate, Size, SizeResult


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
