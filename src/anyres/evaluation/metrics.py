"""How good, and how sure: scores per image, their intervals, and the comparison of two models on the same images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from anyres.config import UserError
from anyres.evaluation.evaluator import EvalSettings, collect
from anyres.flow import Batch, Estimate

_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model said about each of n labelled images, in the order of the dataset, every image once.

    ``index`` are positions in the dataset, ascending; ``target`` and ``predicted`` class indices; ``confidence``
    the softmax probability of the predicted class; ``correct5`` whether the class is among the five most likely;
    ``losses`` cross-entropies in nats.
    """

    index: Int64[np.ndarray, " n"]
    target: Int64[np.ndarray, " n"]
    predicted: Int64[np.ndarray, " n"]
    confidence: Float32[np.ndarray, " n"]
    correct: Bool[np.ndarray, " n"]
    correct5: Bool[np.ndarray, " n"]
    losses: Float32[np.ndarray, " n"]

    @property
    def n(self) -> int:
        """How many labelled images were scored."""
        return len(self.index)

    @property
    def top1(self) -> float:
        """Share of images whose most likely class is theirs, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five most likely (fewer where there are fewer), in [0, 1]."""
        return float(self.correct5.mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, summed in double precision."""
        return float(self.losses.mean(dtype=np.float64))

    def estimates(self) -> dict[str, Estimate]:
        """Top-1 with its Wilson interval, top-5 and the loss."""
        top1 = Estimate(self.top1, *wilson(int(self.correct.sum()), self.n))
        return {"top1": top1, "top5": Estimate(self.top5), "loss": Estimate(self.loss)}


PAIRED_SHARES = ("95\N{NO-BREAK SPACE}% interval (Newcombe, paired) and the exact McNemar test", "right alone")
"""How ``compare`` judges, and what it counts, in words."""


@dataclass(frozen=True)
class Comparison:
    """Model a minus model b on the same n images, in percentage points, with its 95 % interval.

    ``p_value`` is the test's, exact McNemar in ``compare``; ``only_a`` and ``only_b`` count the images that one model
    alone got right, or got better.
    """

    difference: float
    low: float
    high: float
    p_value: float
    only_a: int
    only_b: int
    n: int

    @property
    def inside_noise(self) -> bool:
        """True unless both the test and the interval rule a difference of nought out."""
        return self.p_value >= 0.05 or self.low <= 0 <= self.high


def score(model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> Scores:
    """Run ``model`` over ``batches`` of images with one label each; see ``Evaluator.run``.

    Images without a label (target -1) are left out. Raises UserError where nothing is labelled, a label has no logit,
    or the logits are not finite.
    """
    columns = collect(model, batches, how, _judge)
    labelled = columns[1] >= 0
    index, target, predicted, confidence, correct5, losses = (column[labelled] for column in columns)
    if not len(index):
        raise UserError("there is no image to score: none has a label")
    lost = index[~np.isfinite(losses)]
    if len(lost):
        raise UserError(f"the model's output is not finite for {len(lost)} images, the first at position {lost[0]}")
    return Scores(index, target, predicted, confidence, predicted == target, correct5, losses)


def _judge(logits: Float[Tensor, "b k"], target: Int64[Tensor, " b"]) -> tuple[Tensor, ...]:
    """Per image: target, most likely class, its probability, whether the target is in the top five, cross-entropy."""
    classes = logits.shape[1]
    if int(target.max()) >= classes:
        raise UserError(f"an image has class index {int(target.max())}, but the model knows {classes} classes")
    top = logits.topk(min(5, classes), dim=1).indices  # b 5
    confidence = logits.softmax(dim=1).gather(1, top[:, :1])[:, 0]
    correct5 = (top == target[:, None]).any(dim=1)
    return target, top[:, 0], confidence, correct5, F.cross_entropy(logits, target, ignore_index=-1, reduction="none")


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of the share ``correct`` / ``n``, both ends in [0, 1]. Raises ValueError for n = 0.

    Written out, as scipy's takes two seconds to import: E. B. Wilson, J. of the American Statistical Association 22,
    1927.
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"{correct} right of {n} is no share")
    share, z2 = correct / n, _Z95**2
    middle, reach = share + z2 / (2 * n), _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = ((middle + side) / (1 + z2 / n) for side in (-reach, reach))
    return (low if correct else 0.0), (high if correct < n else 1.0)


def compare(correct_a: Bool[np.ndarray, " n"], correct_b: Bool[np.ndarray, " n"]) -> Comparison:
    """Two models' right answers on the same images in the same order -> Comparison of a with b.

    Test: exact McNemar, binomial on the images that only one model got right. Interval: Newcombe's for paired
    shares (Statistics in Medicine 17, 1998, method 10), built from both Wilson intervals and their correlation.
    Raises ValueError where the arrays differ in length or are empty.
    """
    from scipy.stats import binomtest

    if correct_a.shape != correct_b.shape or not correct_a.size:
        raise ValueError(f"cannot pair {correct_a.size} with {correct_b.size} images")
    n = int(correct_a.size)
    both, only_a = int((correct_a & correct_b).sum()), int((correct_a & ~correct_b).sum())
    only_b, neither = int((~correct_a & correct_b).sum()), int((~correct_a & ~correct_b).sum())
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    low, high = _newcombe(both, only_a, only_b, neither)
    return Comparison(100 * (only_a - only_b) / n, 100 * low, 100 * high, p_value, only_a, only_b, n)


def compare_draws(difference: float, drawn: Float64[np.ndarray, " r"], only_a: int, only_b: int, n: int) -> Comparison:
    """A difference of two models on n images, and the same in r draws of the images -> Comparison of the first with the
    second. Interval: 95 % of the draws and the difference itself, without NaN. Test: the share of them in which the
    other is better, twice."""
    every = np.array([*drawn[~np.isnan(drawn)], difference])
    low, high = (float(end) for end in np.percentile(every, (2.5, 97.5)))
    p_value = min(1.0, 2 * float(min((every <= 0).mean(), (every >= 0).mean())))
    return Comparison(difference, low, high, p_value, only_a, only_b, n)


APART_SHARES = (
    "95\N{NO-BREAK SPACE}% interval (Newcombe, of two sets of images) and Fisher's exact test",
    "right",
)
"""How ``compare_apart`` judges, and what it counts, in words."""


def compare_apart(correct_a: Bool[np.ndarray, " n"], correct_b: Bool[np.ndarray, " m"]) -> Comparison:
    """Two models' right answers, each on images of its own -> Comparison of a with b, which is of models and images
    together: nothing is paired.

    Test: Fisher's exact. Interval: Newcombe's for two shares (Statistics in Medicine 17, 1998, p. 873, method 10), from
    both Wilson intervals. ``only_a`` and ``only_b`` are all right answers, ``n`` the images of the smaller set. Raises
    ValueError where either is empty.
    """
    from scipy.stats import fisher_exact

    right_a, right_b = int(correct_a.sum()), int(correct_b.sum())
    table = np.array([[right_a, correct_a.size - right_a], [right_b, correct_b.size - right_b]])
    (low_a, high_a), (low_b, high_b) = wilson(right_a, correct_a.size), wilson(right_b, correct_b.size)
    a, b = right_a / correct_a.size, right_b / correct_b.size
    low = 100 * (a - b - math.hypot(a - low_a, high_b - b))
    high = 100 * (a - b + math.hypot(high_a - a, b - low_b))
    p_value = float(fisher_exact(table).pvalue)
    return Comparison(100 * (a - b), low, high, p_value, right_a, right_b, min(correct_a.size, correct_b.size))


def _newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95 % interval of (share a) - (share b) from the four counts of a paired table; shares in [-1, 1]."""
    n = both + only_a + only_b + neither
    right_a, right_b = both + only_a, both + only_b
    share_a, share_b = right_a / n, right_b / n
    (low_a, high_a), (low_b, high_b) = wilson(right_a, n), wilson(right_b, n)
    product = float(both * neither - only_a * only_b)
    product = max(product - n / 2, 0.0) if product > 0 else product  # his correction for continuity
    scale = math.sqrt(right_a * (n - right_a)) * math.sqrt(right_b * (n - right_b))
    phi = product / scale if scale else 0.0

    def reach(first: float, second: float) -> float:
        return math.sqrt(max(first * first - 2 * phi * first * second + second * second, 0.0))

    middle = share_a - share_b
    low = middle - reach(share_a - low_a, high_b - share_b)
    return max(low, -1.0), min(middle + reach(high_a - share_a, share_b - low_b), 1.0)
