"""Two models compared by what they said of each image, whatever their task; and many such tests together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from anyres.evaluation.coco import PAIRED_BOXES, BoxScores, compare_boxes
from anyres.evaluation.evaluator import ImageScores, ImageValues
from anyres.evaluation.metrics import APART_SHARES, PAIRED_SHARES, Comparison, Scores, compare, compare_apart
from anyres.evaluation.miou import PAIRED_MAPS, MapScores, compare_maps
from anyres.evaluation.multilabel import PAIRED_LABELS, LabelScores, compare_labels
from anyres.flow import Metric

EXCHANGES = 9999
PAIRED_VALUES = (
    "95\N{NO-BREAK SPACE}% interval (bootstrap of the images, the same draws for both) and a permutation test that "
    "exchanges the models' answers image by image",
    "better alone",
)
"""How ``compare_values`` judges, and what it counts, in words."""
_AT_ONCE = 2**22  # values that are drawn at a time


def compare_scores(a: ImageScores, b: ImageScores, metric: Metric) -> Comparison | None:
    """Model a minus model b on the same images in the same order, by ``metric``, the headline of both; None where
    scores of this kind cannot be compared image by image. Raises ValueError where the images differ."""
    for kind, key, judge in _JUDGES:
        if isinstance(a, kind) and isinstance(b, kind):
            return judge(a, b) if metric.key == key else None
    if not (isinstance(a, ImageValues) and isinstance(b, ImageValues) and a.key == b.key == metric.key):
        return None
    _check_index(a, b)
    return compare_values(a.values, b.values, metric)


def _compare_right(a: Scores, b: Scores) -> Comparison:
    _check_index(a, b)
    return compare(a.correct, b.correct)


def _check_index(a: ImageScores, b: ImageScores) -> None:
    if not np.array_equal(a.index, b.index):
        raise ValueError(f"cannot pair {a.n} with {b.n} images")


_JUDGES: Sequence[tuple[type, str, Callable[[Any, Any], Comparison]]] = (
    (Scores, "top1", _compare_right),
    (MapScores, "miou", compare_maps),
    (LabelScores, "map", compare_labels),
    (BoxScores, "box_ap", compare_boxes),
)
"""What scores of a kind are compared by, and how."""


def compare_sets(a: ImageScores, b: ImageScores) -> Comparison | None:
    """Model a minus model b, each on images of its own; None where only right and wrong answers could be compared."""
    return compare_apart(a.correct, b.correct) if isinstance(a, Scores) and isinstance(b, Scores) else None


def compared_by(scores: ImageScores, *, paired: bool = True) -> tuple[str, str]:
    """By which interval and test two such scores are compared, and what is counted, in words."""
    if isinstance(scores, Scores):
        return PAIRED_SHARES if paired else APART_SHARES
    if isinstance(scores, MapScores):
        return PAIRED_MAPS
    if isinstance(scores, LabelScores):
        return PAIRED_LABELS
    return PAIRED_BOXES if isinstance(scores, BoxScores) else PAIRED_VALUES


def compare_values(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], metric: Metric) -> Comparison:
    """The means of two models' values for the same images -> Comparison of a with b, in the metric's unit (of a share:
    percentage points).

    Interval: 95 % of the mean differences over 1000 draws of the images. Test: how often the mean difference is as
    large when, image by image, chance decides which value is whose; EXCHANGES times, always the same. ``only_a`` and
    ``only_b``: images for which one model is better. Raises ValueError where the arrays differ in length or are empty.
    """
    from scipy.stats import bootstrap, permutation_test

    if a.shape != b.shape or not a.size:
        raise ValueError(f"cannot pair {a.size} with {b.size} images")
    apart = metric.scale * (a.astype(np.float64) - b.astype(np.float64))
    n, difference = int(apart.size), float(apart.mean())
    better = apart if metric.higher_is_better else -apart
    only_a, only_b = int((better > 0).sum()), int((better < 0).sum())
    if n < 2 or not apart.any():
        return Comparison(difference, difference, difference, 1.0, only_a, only_b, n)
    batch = max(1, _AT_ONCE // n)
    drawn = bootstrap(
        (apart,), np.mean, n_resamples=1000, batch=batch, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    tested = permutation_test(
        (apart,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=EXCHANGES,
        batch=batch,
        rng=np.random.default_rng(0),
    )
    low, high, p_value = float(drawn.low), float(drawn.high), float(tested.pvalue)
    return Comparison(difference, low, high, p_value, only_a, only_b, n)


def compare_curves(a: Sequence[ImageScores], b: Sequence[ImageScores], metric: Metric) -> Comparison | None:
    """The means over the same sizes, in the same order, of two models' values for the same images: one test for the
    whole curve. None where the metric is no mean over images."""
    if not a or not all(isinstance(scores, Scores | ImageValues) for scores in (*a, *b)):
        return None
    first, second = (np.mean([_values(scores) for scores in those], axis=0) for those in (a, b))
    return compare_values(first, second, metric)


def _values(scores: ImageScores) -> Float[np.ndarray, " n"]:
    if isinstance(scores, ImageValues):
        return scores.values.astype(np.float64)
    assert isinstance(scores, Scores)
    return scores.correct.astype(np.float64)
