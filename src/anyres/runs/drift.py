"""What a run's held-out images looked like to it, from what its curve and its cascade recorded."""

from __future__ import annotations

import logging
from typing import Any

from anyres.config import Damaged, UserError
from anyres.deploy.cascade import Cascade
from anyres.evaluation.drift import Confidences, HeldOut, Monitor, told
from anyres.evaluation.metrics import Scores
from anyres.evaluation.scores_file import SCORES, read_scores
from anyres.flow import Size
from anyres.models.weights import written_digest
from anyres.runs.cascade import FILE as CASCADE
from anyres.runs.opened import WEIGHTS, TrainedModel

log = logging.getLogger(__name__)


def held_out_of(trained: TrainedModel) -> HeldOut | None:
    """The histograms of a run's held-out images; None for a model that gives no single class, or has no curve of these
    very weights."""
    if trained.folder is None or trained.task.activation != "softmax":
        return None
    try:
        kept = read_scores(trained.folder / SCORES)
    except Damaged as error:
        log.warning("%s: drift is not told; `anyres curve` writes it anew", error)
        return None
    weights = trained.folder / WEIGHTS
    if kept is None or not weights.is_file() or kept.about.weights != written_digest(weights):
        return None
    scores = {size: found for size, found in kept.by_size.items() if isinstance(found, Scores)}
    if not scores:
        return None
    confidences = {str(size): Confidences.of(found.confidence) for size, found in scores.items()}
    best = max(scores, key=lambda size: scores[size].top1)
    n = next(iter(scores.values())).n
    try:
        cascade = Cascade.read(trained.folder / CASCADE)
    except UserError:
        return HeldOut(n, confidences, str(best))
    shares = {size: share for size, share in zip(cascade.sizes, cascade.shares, strict=True) if share}
    return HeldOut(n, confidences, str(best), shares, cascade.images)


class DriftCounter:
    """Counts a trained model's answers as they pass, and says how far the images are from its held-out ones.

    ``cascade``: the answers are those of its cascade. Where no held-out images were measured there is nothing to say.
    """

    def __init__(self, trained: TrainedModel, *, cascade: bool = False) -> None:
        held_out = held_out_of(trained)
        self._monitor = Monitor(held_out, None) if held_out else None
        self._cascade = cascade

    def add(self, size: Size | str, values: Any) -> None:
        """An image was answered at ``size`` with ``values``, those of the task's answer."""
        if self._monitor:
            self._monitor.add(size, confidence_in(values), cascade=self._cascade, chosen=False)

    @property
    def line(self) -> str:
        """In a sentence; "" for fewer than FEWEST images."""
        return told(self._monitor.drifts(), self._monitor.held_out) if self._monitor else ""

    def tell(self) -> None:
        """Log the sentence, where there is one."""
        if line := self.line:
            log.info(line)


def confidence_in(values: Any) -> float:
    """The probability of the likeliest class in an answer's values; NaN where there is none."""
    classes = values.get("classes") if isinstance(values, dict) else None
    return float(classes[0]["probability"]) if classes and "probability" in classes[0] else float("nan")
