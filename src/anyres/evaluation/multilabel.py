"""How good on images of several labels, or of none: how each class is ranked, and how it is decided at 0.5.

Average precision is the mean precision over the images that have the class, as scikit-learn counts it (equal scores are
one threshold); mAP is its mean over the classes that any image has, and so is F1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor, nn

from anyres.config import UserError
from anyres.evaluation.evaluator import EvalSettings, collect
from anyres.evaluation.metrics import Comparison, compare_draws
from anyres.flow import Batch, Estimate, Size
from anyres.storage import write_rows

RESAMPLES, AT_ONCE = 200, 20  # of the bootstrap
PAIRED_DRAWS = 1000
PAIRED_LABELS = (
    "95\N{NO-BREAK SPACE}% interval (bootstrap of the images, the same draws for both), and the share of the draws in "
    "which the other is better, twice",
    "better alone",
)
"""How ``compare_labels`` judges, and what it counts, in words."""


class ClassRow(NamedTuple):
    """One class: ``n`` images have it; shares in [0, 1], those but the first of decisions at 0.5 (precision 0 where
    nothing was taken for it)."""

    name: str
    n: int
    average_precision: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class LabelScores:
    """What a model said about each of n images, in the order of the dataset, every image once: ``target``, which
    classes it has; ``logits``, whose sigmoid is the probability of each."""

    index: Int64[np.ndarray, " n"]
    target: Bool[np.ndarray, "n k"]
    logits: Float32[np.ndarray, "n k"]

    @property
    def n(self) -> int:
        """How many images were scored."""
        return len(self.index)

    @property
    def predicted(self) -> Bool[np.ndarray, "n k"]:
        """The classes with a probability above 0.5."""
        above: Bool[np.ndarray, "n k"] = self.logits > 0
        return above

    @cached_property
    def average_precision(self) -> Float64[np.ndarray, " k"]:
        """Of each class, in [0, 1]; NaN for one that no image has."""
        each: Float64[np.ndarray, " k"] = _average_precision(self.target, self.logits, np.ones((1, self.n)))[0]
        return each

    @property
    def mean_ap(self) -> float:
        """Mean average precision over the classes that any image has, in [0, 1]."""
        return float(np.nanmean(self.average_precision))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of the mAPs of RESAMPLES draws of n images with replacement, always the same draws."""
        draws = np.random.default_rng(0)
        means: list[float] = []
        for _ in range(RESAMPLES // AT_ONCE):
            weights = draws.multinomial(self.n, np.full(self.n, 1 / self.n), AT_ONCE).astype(float)
            means += [m for m in map(_mean, _average_precision(self.target, self.logits, weights)) if not math.isnan(m)]
        low, high = np.percentile([*means, self.mean_ap], (2.5, 97.5))
        return min(float(low), self.mean_ap), max(float(high), self.mean_ap)

    @property
    def f1(self) -> float:
        """Mean F1 at 0.5 over the classes that any image has, in [0, 1]."""
        from torchmetrics.functional.classification import binary_f1_score

        decided, target = (torch.from_numpy(x.astype(np.int64)) for x in (self.predicted, self.target))
        shown = np.flatnonzero(self.target.any(0))
        return float(np.mean([binary_f1_score(decided[:, c], target[:, c]) for c in shown]))

    @property
    def loss(self) -> float:
        """Mean binary cross-entropy over images and classes, in nats, in double precision."""
        logits = self.logits.astype(np.float64)
        return float((np.logaddexp(0, logits) - logits * self.target).mean())

    def estimates(self) -> dict[str, Estimate]:
        """mAP with its bootstrap interval, F1 and the loss."""
        mean_ap = Estimate(self.mean_ap, *self.interval)
        return {"map": mean_ap, "f1": Estimate(self.f1), "loss": Estimate(self.loss)}

    def rows(self, classes: Sequence[str]) -> list[ClassRow]:
        """Every class that any image has, in the order of the classes."""
        hits, taken, own = ((self.predicted & self.target).sum(0), self.predicted.sum(0), self.target.sum(0))
        return [
            ClassRow(
                name,
                int(own[c]),
                float(self.average_precision[c]),
                float(hits[c] / max(1, taken[c])),
                float(hits[c] / own[c]),
                float(2 * hits[c] / (taken[c] + own[c])),
            )
            for c, name in enumerate(classes)
            if own[c]
        ]

    def worst(self, classes: Sequence[str], most: int = 5) -> list[ClassRow]:
        """The classes with the lowest average precision below 1."""
        wrong = [row for row in self.rows(classes) if row.average_precision < 1]
        return sorted(wrong, key=lambda row: (row.average_precision, -row.n))[:most]

    def sure(self, place: int) -> float:
        """The probability of the image's predicted classes together, the classes being independent, in [0, 1]."""
        return float(np.exp(-np.logaddexp(0, -np.abs(self.logits[place].astype(np.float64))).sum()))


def score_labels(model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> LabelScores:
    """Run ``model`` over ``batches`` of a multi-label set, whose targets are (b, k); see ``Evaluator.run``.

    Raises UserError where no image has a label, or the logits are not finite or not as many as classes.
    """
    index, target, logits = collect(model, batches, how, _judge)
    if not target.any():
        raise UserError("there is no image to score: none has a label")
    lost = index[~np.isfinite(logits).all(1)]
    if len(lost):
        raise UserError(f"the model's output is not finite for {len(lost)} images, the first at position {lost[0]}")
    return LabelScores(index, target, logits)


def _judge(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    if logits.shape != target.shape:
        raise UserError(f"images have {target.shape[1]} classes, but the model knows {logits.shape[1]}")
    return target > 0, logits


def compare_labels(a: LabelScores, b: LabelScores) -> Comparison:
    """mAP of two models on the same images in the same order -> Comparison of a with b.

    Interval and test: over PAIRED_DRAWS draws of the images with replacement, the same for both. ``only_a`` and
    ``only_b``: images for which one model decides more classes rightly. Raises ValueError where the images differ.
    """
    if not (np.array_equal(a.index, b.index) and np.array_equal(a.target, b.target)):
        raise ValueError(f"cannot pair {a.n} with {b.n} images")
    draws = np.random.default_rng(0)
    apart: list[float] = []
    for _ in range(PAIRED_DRAWS // AT_ONCE):
        weights = draws.multinomial(a.n, np.full(a.n, 1 / a.n), AT_ONCE).astype(float)
        means = [[_mean(each) for each in _average_precision(s.target, s.logits, weights)] for s in (a, b)]
        apart += [100 * (first - second) for first, second in zip(*means, strict=True)]
    right = [(s.predicted == s.target).sum(1) for s in (a, b)]
    only_a, only_b = int((right[0] > right[1]).sum()), int((right[1] > right[0]).sum())
    return compare_draws(100 * (a.mean_ap - b.mean_ap), np.array(apart), only_a, only_b, a.n)


def _average_precision(
    target: Bool[np.ndarray, "n k"], logits: Float32[np.ndarray, "n k"], weights: Float64[np.ndarray, "r n"]
) -> Float64[np.ndarray, "r k"]:
    """Of each class, for each of r weightings of the images; NaN where no image of any weight has it.

    In double precision and with weights, as the bootstrap resamples; torchmetrics has neither, and refuses one class.
    """
    found = np.full((len(weights), target.shape[1]), np.nan)
    for c in np.flatnonzero(target.any(0)):
        order = np.argsort(-logits[:, c], kind="stable")
        ranked = logits[order, c]
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of runs of equal scores
        seen = weights[:, order]  # (r, n)
        right, all_ = ((seen * target[order, c]).cumsum(1)[:, ends], seen.cumsum(1)[:, ends])
        gained = np.diff(right, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore"):
            found[:, c] = (gained * right / np.maximum(all_, 1e-9)).sum(1) / right[:, -1]
    return found


def _mean(values: Float64[np.ndarray, " k"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def write_label_table(by_size: Mapping[Size, LabelScores], classes: Sequence[str], folder: Path) -> Path:
    """Write ``per_class.csv`` (size, then the columns of ClassRow, ``name`` as ``class``), replaced at once."""
    path = folder / "per_class.csv"
    head: list[Any] = ["size", "class", *ClassRow._fields[1:]]
    write_rows(path, [head, *([str(size), *row] for size, scores in by_size.items() for row in scores.rows(classes))])
    return path
