"""How good maps of classes are: intersection over union of each class, summed over all pictures, and its mean.

Every picture counts at its own size: logits are resized to it, without the padding of a view that has one, then the
likeliest class is taken. Ignored pixels count for nothing. The mean is over the classes that any picture has or is said
to have, as torchmetrics' is.
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
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped, UInt8
from torch import Tensor, nn

from anyres.config import UserError
from anyres.evaluation.evaluator import EvalSettings, collect
from anyres.evaluation.joined import shown_part
from anyres.evaluation.metrics import Comparison
from anyres.flow import IGNORED, Batch, Estimate, Geometry, Size
from anyres.storage import write_rows

RESAMPLES, AT_ONCE = 1000, 100  # of the bootstrap
VALUES_AT_ONCE = 2**25  # resized logits that are held at a time
EXCHANGES = 9999  # of two models' answers, in the permutation test
KEPT_BYTES = 2**26  # of answered maps that are kept to be shown

PAIRED_MAPS = (
    "95\N{NO-BREAK SPACE}% interval (bootstrap of the pictures, the same draws for both) and a permutation test that "
    "exchanges the models' answers picture by picture",
    "better alone",
)
"""How ``compare_maps`` judges, and what it counts, in words."""


class ClassRow(NamedTuple):
    """One class: ``pixels`` are of it, over all pictures; shares in [0, 1], NaN where nothing is."""

    name: str
    pixels: int
    iou: float
    precision: float
    recall: float


@dataclass(frozen=True, eq=False)
class MapScores:
    """What a model said of each of n pictures, in the order of the dataset, every picture once.

    ``counts[i]``: pixels of picture i by class: rightly found, of the class, said to be of it; ignored ones left out.
    ``maps``: the answered map of each picture, uint8 (h, w) of its own size; () where they were too many to keep.
    """

    index: Int64[np.ndarray, " n"]
    counts: Int64[np.ndarray, "n 3 k"]
    maps: tuple[UInt8[np.ndarray, "_ _"], ...] = ()

    @property
    def n(self) -> int:
        """How many pictures were scored."""
        return len(self.index)

    @property
    def iou(self) -> Float64[np.ndarray, " k"]:
        """Of each class, in [0, 1]; NaN for one that no picture has, nor is said to have."""
        return _iou(self.counts.sum(0))

    @property
    def miou(self) -> float:
        """The mean of ``iou``, in [0, 1]."""
        return float(_mean(self.iou))

    @property
    def accuracy(self) -> float:
        """Share of the pixels whose class is found, in [0, 1]."""
        right, own, _ = self.counts.sum((0, 2))
        return float(right / max(1, own))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of the mIoUs of RESAMPLES draws of n pictures with replacement, always the same draws."""
        draws = np.random.default_rng(0)
        flat = self.counts.reshape(self.n, -1).astype(np.float64)
        means: list[float] = []
        for _ in range(RESAMPLES // AT_ONCE):
            weights = draws.multinomial(self.n, np.full(self.n, 1 / self.n), AT_ONCE).astype(np.float64)
            drawn = (weights @ flat).reshape(AT_ONCE, 3, -1)
            means += [mean for mean in _mean(_iou(drawn)).tolist() if not math.isnan(mean)]
        low, high = np.percentile([*means, self.miou], (2.5, 97.5))
        return min(float(low), self.miou), max(float(high), self.miou)

    def estimates(self) -> dict[str, Estimate]:
        """mIoU with its bootstrap interval, and the share of pixels that are right."""
        interval = self.interval if self.n > 1 else (math.nan, math.nan)
        return {"miou": Estimate(self.miou, *interval), "pixel_accuracy": Estimate(self.accuracy)}

    def of_picture(self, place: int) -> float:
        """The mIoU of one picture, in [0, 1]; NaN where all of it is ignored."""
        return float(_mean(_iou(self.counts[place])))

    def rows(self, classes: Sequence[str]) -> list[ClassRow]:
        """Every class that any picture has or is said to have, in the order of the classes."""
        right, own, said = self.counts.sum(0)
        return [
            ClassRow(
                name, int(own[c]), float(iou), _share(int(right[c]), int(said[c])), _share(int(right[c]), int(own[c]))
            )
            for c, (name, iou) in enumerate(zip(classes, self.iou, strict=True))
            if not math.isnan(iou)
        ]

    def worst(self, classes: Sequence[str], most: int = 5) -> list[ClassRow]:
        """The classes with the lowest intersection over union."""
        return sorted(self.rows(classes), key=lambda row: (row.iou, -row.pixels))[:most]


def score_maps(model: nn.Module, batches: Iterable[Batch], how: EvalSettings, classes: int) -> MapScores:
    """Run ``model``, whose answers are logits (b, k, H, W) of ``classes`` classes, over ``batches`` whose targets are
    ``flow.OwnMaps``; see ``Evaluator.run``. Raises UserError where every pixel is ignored, or logits are not finite."""
    maps: list[UInt8[np.ndarray, "_ _"]] = []
    kept = 0

    def judge(logits: Tensor, truths: Sequence[tuple[Tensor, Geometry | None]]) -> tuple[Tensor, ...]:
        nonlocal kept
        if logits.ndim != 4 or logits.shape[1] != classes:
            raise UserError(f"pictures have {classes} classes, and the model answers with {tuple(logits.shape[1:])}")
        counts = []
        for each, (truth, seen) in zip(logits, truths, strict=True):
            shown = each if seen is None else shown_part(each, seen)[0]
            said = classes_at(shown, Size(*truth.shape))
            counts.append(count_pixels(said, truth, classes))
            kept += said.numel()
            if kept <= KEPT_BYTES:
                maps.append(said.cpu().numpy())
        return torch.stack(counts), logits.isfinite().flatten(1).all(1)

    index, counts, finite = collect(model, batches, how, judge)
    if not finite.all():
        lost = index[~finite]
        raise UserError(f"the model's output is not finite for {len(lost)} images, the first at position {lost[0]}")
    if not counts[:, 1].any():
        raise UserError("there is no pixel to score: all are ignored")
    return MapScores(index, counts, tuple(maps) if len(maps) == len(index) else ())


def compare_maps(a: MapScores, b: MapScores) -> Comparison:
    """mIoU of two models on the same pictures in the same order -> Comparison of a with b.

    Interval: 95 % of the differences over RESAMPLES draws of the pictures, the same for both. Test: how often the
    difference is as large when, picture by picture, chance decides which answer is whose; EXCHANGES times, always the
    same. ``only_a`` and ``only_b``: pictures whose own mIoU is higher with one model. Raises ValueError where the
    pictures differ.
    """
    if not np.array_equal(a.index, b.index):
        raise ValueError(f"cannot pair {a.n} with {b.n} pictures")
    n, shape = a.n, a.counts.shape[1:]
    first, second = (scores.counts.reshape(n, -1).astype(np.float64) for scores in (a, b))

    def apart(ones: Float64[np.ndarray, "r e"], others: Float64[np.ndarray, "r e"]) -> Float64[np.ndarray, " r"]:
        means = [_mean(_iou(some.reshape(-1, *shape))) for some in (ones, others)]
        found: Float64[np.ndarray, " r"] = means[0] - means[1]
        return found

    draws = np.random.default_rng(0)
    difference = a.miou - b.miou
    drawn = draws.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)
    differences = [*apart(drawn @ first, drawn @ second), difference]
    low, high = (100 * float(end) for end in np.nanpercentile(differences, (2.5, 97.5)))
    exchanged = draws.integers(2, size=(EXCHANGES, n)).astype(np.float64)
    moved = exchanged @ (second - first)
    chance = apart(first.sum(0) + moved, second.sum(0) - moved)
    p_value = (1 + int((np.abs(chance) >= abs(difference) - 1e-12).sum())) / (1 + EXCHANGES)
    own = np.asarray([[scores.of_picture(place) for place in range(n)] for scores in (a, b)])
    only_a, only_b = int((own[0] > own[1]).sum()), int((own[1] > own[0]).sum())
    return Comparison(100 * difference, low, high, p_value, only_a, only_b, n)


def classes_at(logits: Float[Tensor, "k rows columns"], size: Size) -> UInt8[Tensor, "h w"]:
    """The likeliest class of each pixel, of logits resized (bilinear) to ``size``; some classes at a time."""
    classes = len(logits)
    share = max(1, VALUES_AT_ONCE // (size.height * size.width))
    best: Tensor | None = None
    found = torch.zeros(tuple(size), dtype=torch.uint8, device=logits.device)
    for first in range(0, classes, share):
        some = logits[None, first : first + share]
        if tuple(some.shape[2:]) != tuple(size):
            some = F.interpolate(some, size=list(size), mode="bilinear", align_corners=False)
        most, which = some[0].max(0)
        which = (which + first).to(torch.uint8)
        found = which if best is None else torch.where(most > best, which, found)
        best = most if best is None else torch.maximum(best, most)
    return found


def count_pixels(said: UInt8[Tensor, "h w"], truth: UInt8[Tensor, "h w"], classes: int) -> Int64[Tensor, "3 k"]:
    """Pixels of each class: rightly found, of the class, said to be of it; where ``truth`` is 255 none count."""
    counted = truth != IGNORED
    own, other = truth[counted].long(), said[counted].long()
    counts = [torch.bincount(x, minlength=classes) for x in (own[own == other], own, other)]
    return torch.stack(counts)


def write_class_table(by_size: Mapping[Size, MapScores], classes: Sequence[str], folder: Path) -> Path:
    """Write ``per_class.csv`` (size, then the columns of ClassRow, ``name`` as ``class``), replaced at once."""
    path = folder / "per_class.csv"
    head: list[Any] = ["size", "class", *ClassRow._fields[1:]]
    write_rows(path, [head, *([str(size), *row] for size, scores in by_size.items() for row in scores.rows(classes))])
    return path


def _iou(counts: Shaped[np.ndarray, "*r 3 k"]) -> Float64[np.ndarray, "*r k"]:
    """Counts (..., 3, k) -> intersection over union; NaN where there is no union."""
    right, own, said = (counts[..., i, :].astype(np.float64) for i in range(3))
    union = own + said - right
    found: Float64[np.ndarray, "*r k"] = np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)
    return found


def _mean(iou: Float64[np.ndarray, "*r k"]) -> Any:
    """The mean over the classes that are known; NaN where none is."""
    known = ~np.isnan(iou)
    total = np.where(known, iou, 0.0).sum(-1)
    return np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
