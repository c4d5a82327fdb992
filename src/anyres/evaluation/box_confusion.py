"""What objects were taken for, and what was found where nothing is: the confusion of a detector, with background."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torchvision.ops import box_iou

from anyres.evaluation.coco import CocoScores
from anyres.evaluation.confusion import Confusion
from anyres.evaluation.detections import Detections, Truth

BACKGROUND = "background"
OVERLAP = 0.5  # of two boxes that mean the same object


def box_confusion(scores: CocoScores, classes: Sequence[str]) -> Confusion:
    """Boxes of the score ``scores.best_score`` or better against the objects, of any class, that they overlap by half.

    The last class is background: in its row, what was found where nothing is; in its column, objects that were not
    found. Each box and object counts once, pairs of one class first, then those that overlap most; what lies in a
    crowd of its class counts for nothing.
    """
    k = len(classes)
    counts = np.zeros((k + 1, k + 1), np.int64)
    for truth, found in zip(scores.truths, scores.found, strict=True):
        for own, said in _pairs(truth, found.above(scores.best_score)):
            counts[k if own is None else own, k if said is None else said] += 1
    rows, columns = np.nonzero(counts)
    return Confusion((*classes, BACKGROUND), rows, columns, counts[rows, columns])


def _pairs(truth: Truth, found: Detections) -> list[tuple[int | None, int | None]]:
    """Class of an object and of the box that is taken for it; None for background."""
    plain = np.flatnonzero(~truth.crowd)
    overlap = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(truth.boxes[plain])).numpy()
    same = found.classes[:, None] == truth.classes[None, plain]
    made: list[tuple[int | None, int | None]] = []
    free_found, free_true = np.full(len(found), True), np.full(len(plain), True)
    i, j = np.nonzero(overlap >= OVERLAP)
    for place in np.lexsort((-overlap[i, j], ~same[i, j])).tolist():
        box, thing = int(i[place]), int(j[place])
        if free_found[box] and free_true[thing]:
            free_found[box] = free_true[thing] = False
            made.append((int(truth.classes[plain[thing]]), int(found.classes[box])))
    made += [(int(c), None) for c in truth.classes[plain[free_true]].tolist()]
    lost = free_found & ~_in_crowd(truth, found)
    return made + [(None, int(c)) for c in found.classes[lost].tolist()]


def _in_crowd(truth: Truth, found: Detections) -> Bool[np.ndarray, " n"]:
    """Which boxes lie, by half of their area, in a crowd of their class."""
    crowds, kinds = truth.boxes[truth.crowd].astype(np.float64), truth.classes[truth.crowd]
    boxes = found.boxes.astype(np.float64)
    inside = _area(
        np.maximum(boxes[:, None, :2], crowds[None, :, :2]), np.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    )
    share = inside / np.maximum(_area(boxes[:, :2], boxes[:, 2:]), 1e-9)[:, None]
    taken: Bool[np.ndarray, " n"] = ((share >= OVERLAP) & (found.classes[:, None] == kinds[None])).any(1)
    return taken


def _area(low: Float[np.ndarray, "*n 2"], high: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    area: Float[np.ndarray, "*n"] = (high - low).clip(0).prod(-1)
    return area
