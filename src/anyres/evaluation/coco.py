"""How good a detector is: COCO's average precision of boxes and masks, per class, by size of object, per picture.

All is measured in pixels of the upright picture, whatever size the model saw it at. ``detections`` has the types of
what is there and what is found, ``average_precision`` the matching.
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
from jaxtyping import Int64
from torch import nn

from anyres.config import UserError
from anyres.evaluation.average_precision import DRAWS, MOST, Matched, Matches, match
from anyres.evaluation.detections import Detections, Truth, detections_of
from anyres.evaluation.evaluator import EvalSettings, evaluating
from anyres.evaluation.metrics import Comparison, compare_draws
from anyres.evaluation.ragged import Picture, gather_pictures
from anyres.flow import Batch, Estimate, Rle, Size
from anyres.storage import write_rows

__all__ = [
    "BoxScores",
    "ClassRow",
    "CocoScores",
    "Detections",
    "PictureFacts",
    "Truth",
    "compare_boxes",
    "score_detections",
    "write_class_table",
]
PAIRED_BOXES = (
    "95\N{NO-BREAK SPACE}% interval (bootstrap of the pictures, the same draws for both), and the share of the draws "
    "in which the other is better, twice",
    "better alone",
)
"""How ``compare_boxes`` judges, and what it counts, in words."""


class ClassRow(NamedTuple):
    """One class: ``objects`` without crowds; shares in [0, 1], NaN where nothing is. ``precision`` and ``recall`` are
    of boxes at an overlap of 0.5 and the score ``CocoScores.best_score``."""

    name: str
    objects: int
    box_ap: float
    box_ap50: float
    mask_ap: float
    small: float
    medium: float
    large: float
    precision: float
    recall: float


class PictureFacts(NamedTuple):
    """One picture at an overlap of 0.5 and the score ``CocoScores.best_score``: ``objects`` without crowds, boxes
    ``found``, and how many of those are ``right``; what a crowd took is not counted."""

    objects: int
    found: int
    right: int

    @property
    def f1(self) -> float:
        """In [0, 1]; 1 where there is nothing and nothing was found."""
        return 2 * self.right / (self.objects + self.found) if self.objects + self.found else 1.0


@dataclass(frozen=True, eq=False)
class CocoScores:
    """What a detector found on each of n pictures, in the order of the dataset, every picture once.

    ``truths`` and ``found``: of each picture. ``classes``: how many there are. ``most``: detections of a picture and
    class that count.
    """

    index: Int64[np.ndarray, " n"]
    truths: tuple[Truth, ...]
    found: tuple[Detections, ...]
    classes: int
    most: int = MOST

    @property
    def n(self) -> int:
        """How many pictures were scored."""
        return len(self.index)

    @property
    def has_masks(self) -> bool:
        """Whether masks were answered and are known."""
        return all(t.masks is not None and f.masks is not None for t, f in zip(self.truths, self.found, strict=True))

    def kept(self) -> BoxScores:
        """What decides the average precision of boxes."""
        return BoxScores(self.index, self.boxes.matches)

    @cached_property
    def boxes(self) -> Matched:
        """Boxes against boxes."""
        return match(self.truths, self.found, self.classes, "bbox", self.most)

    @cached_property
    def masks(self) -> Matched | None:
        """Masks against masks; None where there are none."""
        return match(self.truths, self.found, self.classes, "segm", self.most) if self.has_masks else None

    def estimates(self) -> dict[str, Estimate]:
        """By the keys of ``measured.BOX_METRICS``: AP and AP50 of boxes and, where there are, of masks, with bootstrap
        intervals; box AP of small, medium and large objects, NaN where there is none."""
        made: dict[str, Estimate] = {}
        for what, matched in (("box", self.boxes), ("mask", self.masks)):
            if matched is not None:
                made[f"{what}_ap"] = Estimate(matched.ap(), *matched.interval())
                made[f"{what}_ap50"] = Estimate(matched.ap(overlap=0.5), *matched.interval(0.5))
        return made | {f"box_ap_{area}": Estimate(self.boxes.ap(area)) for area in ("small", "medium", "large")}

    @cached_property
    def best_score(self) -> float:
        """The score from which on boxes are worth showing: F1 of all classes together, at an overlap of 0.5, is
        highest there. 0.5 where no box is right."""
        matched = self.boxes
        counted = ~matched.ignored[0]
        order = np.argsort(-matched.score[counted], kind="stable")
        right = matched.hit[0, counted][order].cumsum()
        if not len(right) or not right[-1]:
            return 0.5
        f1 = 2 * right / (np.arange(1, len(right) + 1) + matched.objects.sum())
        return float(matched.score[counted][order][int(f1.argmax())])

    @cached_property
    def facts(self) -> tuple[PictureFacts, ...]:
        """Of each picture."""
        matched = self.boxes
        shown = (matched.score >= np.float32(self.best_score)) & ~matched.ignored[0]
        found, right = (
            np.bincount(matched.picture[chosen], minlength=self.n) for chosen in (shown, shown & matched.hit[0])
        )
        return tuple(map(PictureFacts, matched.objects.sum(1).tolist(), found.tolist(), right.tolist()))

    def of_picture(self, place: int) -> float:
        """F1 of one picture, in [0, 1]: see ``PictureFacts``."""
        return self.facts[place].f1

    def rows(self, classes: Sequence[str]) -> list[ClassRow]:
        """Every class that has objects or was found, in the order of the classes."""
        matched, masks = self.boxes, self.masks
        counted = ~matched.ignored[0] & (matched.score >= np.float32(self.best_score))
        found, right = (
            np.bincount(matched.klass[chosen], minlength=self.classes) for chosen in (counted, counted & matched.hit[0])
        )
        objects = matched.objects.sum(0)
        small, medium, large = (matched.per_class(area) for area in ("small", "medium", "large"))
        ap, ap50 = matched.per_class(), matched.per_class(overlap=0.5)
        mask_ap = np.full(self.classes, math.nan) if masks is None else masks.per_class()
        return [
            ClassRow(
                name,
                int(objects[c]),
                float(ap[c]),
                float(ap50[c]),
                float(mask_ap[c]),
                float(small[c]),
                float(medium[c]),
                float(large[c]),
                _share(int(right[c]), int(found[c])),
                _share(int(right[c]), int(objects[c])),
            )
            for c, name in enumerate(classes)
            if objects[c] or found[c]
        ]

    def worst(self, classes: Sequence[str], most: int = 5) -> list[ClassRow]:
        """The classes with the lowest box AP, of those that have objects."""
        known = [row for row in self.rows(classes) if not math.isnan(row.box_ap)]
        return sorted(known, key=lambda row: (row.box_ap, -row.objects))[:most]


@dataclass(frozen=True, eq=False)
class BoxScores:
    """What decides the average precision of a detector's boxes on n pictures, in the order of the dataset."""

    index: Int64[np.ndarray, " n"]
    matches: Matches

    @property
    def n(self) -> int:
        """How many pictures were scored."""
        return len(self.index)

    def estimates(self) -> dict[str, Estimate]:
        """Box AP, without its interval."""
        return {"box_ap": Estimate(float(self.matches.drawn_ap(np.ones((1, self.n), np.int64))[0]))}


def compare_boxes(a: BoxScores, b: BoxScores) -> Comparison:
    """Box AP of two detectors on the same pictures in the same order -> Comparison of a with b.

    Interval and test: over DRAWS draws of the pictures with replacement, the same for both. ``only_a`` and ``only_b``:
    pictures with more right boxes, at an overlap of 0.5, less those that are wrong, from one detector. Raises
    ValueError where the pictures differ.
    """
    if not np.array_equal(a.index, b.index):
        raise ValueError(f"cannot pair {a.n} with {b.n} pictures")
    n = a.n
    times = np.concatenate(
        [np.ones((1, n), np.int64), np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS)]
    )
    apart = 100 * (a.matches.drawn_ap(times) - b.matches.drawn_ap(times))
    own = [
        np.bincount(m.picture, np.where(m.ignored[0], 0.0, np.where(m.hit[0], 1.0, -1.0)), n)
        for m in (a.matches, b.matches)
    ]
    only_a, only_b = int((own[0] > own[1]).sum()), int((own[1] > own[0]).sum())
    return compare_draws(float(apart[0]), apart[1:], only_a, only_b, n)


def score_detections(
    model: nn.Module,
    batches: Iterable[Batch],
    how: EvalSettings,
    classes: int,
    *,
    masks: bool = False,
    most: int = MOST,
) -> CocoScores:
    """Run ``model`` over ``batches`` whose targets are ``flow.OwnObjects``; see ``Evaluator.run``.

    ``model``: pixels (b, c, H, W) -> for each picture a dict as ``models.dense.detector.Detector`` answers: ``boxes``
    in pixels of the view, ``scores``, ``labels`` from 0, ``masks`` if there are. ``masks``: whether those are scored
    too. ``most``: detections of a picture and class that count, COCO's 100. Raises UserError where there is no picture
    or no object to score, and where an answer is not finite.
    """
    pictures: list[Picture] = []
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            pixels = batch.views[0].to(how.device, non_blocking=True)
            with torch.autocast(how.device.type, dtype=how.autocast, enabled=how.autocast is not None):
                outputs = model(pixels)
            each = zip(batch.index.tolist(), outputs, batch.targets.of(0), strict=True)
            for index, output, (objects, geometry) in each:
                kept = {key: output[key] for key in ("boxes", "scores", "labels", *(["masks"] if masks else []))}
                finite = all(bool(kept[key].isfinite().all()) for key in ("boxes", "scores"))
                said = detections_of(kept, geometry) if finite else _lost(objects.of_size)
                pictures.append(Picture(index, Truth.of(objects, masks), said))
    pictures = gather_pictures(pictures, how)  # before anything is refused, as other processes wait here
    lost = [picture.place for picture in pictures if np.isnan(picture.found.scores).any()]
    if lost:
        raise UserError(f"the model's output is not finite for {len(lost)} images, the first at position {lost[0]}")
    if not pictures:
        raise UserError("there is no image to score: the split is empty")
    if not any((~picture.truth.crowd).any() for picture in pictures):
        raise UserError("there is no object to score: no picture has one")
    index, truths, found = zip(*pictures, strict=True)
    return CocoScores(np.array(index, np.int64), truths, found, classes, most)


def _lost(size: Size) -> Detections:
    """What stands for an answer that is not finite."""
    nothing = Rle(np.array([size.height * size.width]), size)
    box = np.zeros((1, 4), np.float32)
    return Detections(box, np.full(1, np.nan, np.float32), np.zeros(1, np.int64), (nothing,))


def write_class_table(by_size: Mapping[Size, CocoScores], classes: Sequence[str], folder: Path) -> Path:
    """Write ``per_class.csv`` (size, then the columns of ClassRow, ``name`` as ``class``), replaced at once."""
    path = folder / "per_class.csv"
    head: list[Any] = ["size", "class", *ClassRow._fields[1:]]
    write_rows(path, [head, *([str(size), *row] for size, scores in by_size.items() for row in scores.rows(classes))])
    return path


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
