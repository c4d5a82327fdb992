"""Which classes a model gets wrong, and what it takes them for: counted sparsely, so that thousands of classes fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from anyres.evaluation.metrics import Scores, wilson
from anyres.flow import Size
from anyres.storage import write_rows


@dataclass(frozen=True)
class ClassScore:
    """One class at one size: ``correct`` of ``n`` images, as a share with its 95 % Wilson interval."""

    name: str
    n: int
    correct: int
    low: float
    high: float

    @property
    def accuracy(self) -> float:
        """Share of its images that were taken for it, in [0, 1]."""
        return self.correct / self.n


@dataclass(frozen=True)
class Pair:
    """``count`` images of class ``truth`` were taken for ``taken_for``: a ``share`` of the class's images."""

    truth: str
    taken_for: str
    count: int
    share: float


@dataclass(frozen=True, eq=False)
class Confusion:
    """The confusion matrix of len(``classes``) classes, its m entries above nought: ``count[i]`` images of class
    ``truth[i]`` were taken for class ``predicted[i]``; ordered by truth, then prediction."""

    classes: tuple[str, ...]
    truth: Int64[np.ndarray, " m"]
    predicted: Int64[np.ndarray, " m"]
    count: Int64[np.ndarray, " m"]

    @property
    def images(self) -> Int64[np.ndarray, " k"]:
        """How many images of each class there are."""
        return self._sum(np.full(len(self.count), True))

    @property
    def correct(self) -> Int64[np.ndarray, " k"]:
        """How many of them were taken for what they are."""
        return self._sum(self.truth == self.predicted)

    def _sum(self, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Int64[np.ndarray, " k"]:
        sums = np.zeros(len(self.classes), np.int64)
        np.add.at(sums, self.truth[chosen], self.count[chosen])
        return sums

    def per_class(self) -> list[ClassScore]:
        """Every class that has images, in the order of the classes."""
        pairs = zip(self.classes, self.images.tolist(), self.correct.tolist(), strict=True)
        return [ClassScore(name, n, right, *wilson(right, n)) for name, n, right in pairs if n]

    def worst(self, most: int = 5) -> list[ClassScore]:
        """The classes least often right, of equals the one with most images first; none that is always right."""
        wrong = [one for one in self.per_class() if one.correct < one.n]
        return sorted(wrong, key=lambda one: (one.accuracy, -one.n))[:most]

    def confused(self, most: int = 5) -> list[Pair]:
        """The most frequent mistakes, of equals the one of the smaller class first."""
        images = self.images
        entries = zip(self.truth.tolist(), self.predicted.tolist(), self.count.tolist(), strict=True)
        mistakes = [Pair(self.classes[t], self.classes[p], n, n / int(images[t])) for t, p, n in entries if t != p]
        return sorted(mistakes, key=lambda pair: (-pair.count, -pair.share))[:most]

    def matrix(self) -> tuple[tuple[str, ...], Int64[np.ndarray, "r c"]]:
        """Dense, of the r classes that have images; c = r, or r + 1 with what was taken for any other class last."""
        shown = np.flatnonzero(self.images)
        place = np.full(len(self.classes), len(shown))
        place[shown] = np.arange(len(shown))
        dense = np.zeros((len(shown), len(shown) + 1), np.int64)
        np.add.at(dense, (place[self.truth], place[self.predicted]), self.count)
        return tuple(self.classes[i] for i in shown), dense if dense[:, -1].any() else dense[:, :-1]


def confusion(scores: Scores, classes: Sequence[str]) -> Confusion:
    """Count what was taken for what; ``classes`` are the names by class index."""
    k = len(classes)
    code, count = np.unique(scores.target * k + scores.predicted, return_counts=True)
    return Confusion(tuple(classes), code // k, code % k, count.astype(np.int64))


def write_tables(by_size: Mapping[Size, Confusion], folder: Path) -> list[Path]:
    """Write ``per_class.csv`` (size, class, n, correct, accuracy, low, high) and ``confusion.csv``, each replaced at
    once; returns them."""
    path = folder / "per_class.csv"
    head: list[Any] = ["size", "class", "n", "correct", "accuracy", "low", "high"]
    rows = [
        [str(size), c.name, c.n, c.correct, c.accuracy, c.low, c.high]
        for size, one in by_size.items()
        for c in one.per_class()
    ]
    write_rows(path, [head, *rows])
    return [path, write_confusions(by_size, folder)]


def write_confusions(by_size: Mapping[Size, Confusion], folder: Path) -> Path:
    """Write ``confusion.csv`` (size, class, taken_for, count; only what happened), replaced at once."""
    path = folder / "confusion.csv"
    rows = [
        [str(size), one.classes[t], one.classes[p], n]
        for size, one in by_size.items()
        for t, p, n in zip(one.truth.tolist(), one.predicted.tolist(), one.count.tolist(), strict=True)
    ]
    write_rows(path, [["size", "class", "taken_for", "count"], *rows])
    return path
