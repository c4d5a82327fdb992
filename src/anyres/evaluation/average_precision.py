"""COCO's average precision: matching and accumulation by faster-coco-eval, and again over draws of pictures.

A detection is right where it overlaps an object of its class that no better one has taken, by an intersection over
union of at least 0.5, 0.55, ... 0.95. AP is the mean over these, over 101 recalls, over the classes that have objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from anyres.config import need
from anyres.evaluation.detections import Detections, Truth, compressed

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = ("all", "small", "medium", "large")
MOST = 100
"""Detections of a picture and class that count, the best."""
DRAWS, AT_ONCE = 200, 20  # of the bootstrap


@dataclass(frozen=True, eq=False)
class Matches:
    """What decides AP, of the d detections that count, picture after picture, the best first: ``picture``, ``klass``,
    ``score``, and at each of t overlaps ``hit``, or ``ignored`` where a crowd took it. ``objects``: of each picture and
    class, without crowds.
    """

    picture: Int64[np.ndarray, " d"]
    klass: Int64[np.ndarray, " d"]
    score: Float32[np.ndarray, " d"]
    hit: Bool[np.ndarray, "t d"]
    ignored: Bool[np.ndarray, "t d"]
    objects: Int64[np.ndarray, "n k"]

    def drawn(self, times: Int64[np.ndarray, "r n"]) -> Float64[np.ndarray, "r t k"]:
        """AP at each overlap of each class where picture i comes ``times[:, i]`` times, in r ways; all areas; NaN for a
        class without objects.

        Equal to COCO's accumulation of the pictures repeated so, unless boxes of one picture have equal scores: copies
        of a box come together, and of the points between them none has a higher precision at its recall than the last.
        """
        made = np.full((len(times), len(OVERLAPS), self.objects.shape[1]), np.nan)
        objects = times @ self.objects  # (r, k)
        for c in np.flatnonzero(self.objects.any(0)).tolist():
            own = np.flatnonzero(self.klass == c)
            own = own[np.argsort(-self.score[own], kind="stable")]
            drawn = times[:, self.picture[own]]  # (r, d)
            seen = drawn.cumsum(1)
            for t in range(len(OVERLAPS)):
                right, ignored = self.hit[t, own], self.ignored[t, own]
                counted = (drawn * ~ignored).cumsum(1) if ignored.any() else seen
                hits = drawn[:, right].cumsum(1)
                precision = hits / (counted[:, right] + np.spacing(1))
                precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
                for r in np.flatnonzero(objects[:, c]).tolist():
                    places = np.searchsorted(hits[r] / objects[r, c], RECALLS)
                    made[r, t, c] = precision[r, places[places < len(hits[r])]].sum() / len(RECALLS)
        return made

    def drawn_ap(self, times: Int64[np.ndarray, "r n"]) -> Float64[np.ndarray, " r"]:
        """AP over all overlaps and classes in [0, 1], of each of r draws of the pictures."""
        means: Float64[np.ndarray, " r"] = _mean(self.drawn(times).mean(1))
        return means


@dataclass(frozen=True, eq=False)
class Matched(Matches):
    """What faster-coco-eval makes of all pictures: t overlaps, 101 recalls, k classes, 4 areas.

    ``precision``: highest at this recall or beyond; NaN for a class without objects of the area. ``confidence``: the
    score there. ``recall``: of all detections.
    """

    precision: Float64[np.ndarray, "t 101 k 4"]
    confidence: Float64[np.ndarray, "t 101 k 4"]
    recall: Float64[np.ndarray, "t k 4"]

    def ap(self, area: str = "all", overlap: float | None = None) -> float:
        """In [0, 1], over all overlaps or at one; NaN where no class has objects of the area."""
        return float(_mean(self.per_class(area, overlap)))

    def per_class(self, area: str = "all", overlap: float | None = None) -> Float64[np.ndarray, " k"]:
        """The same of each class; NaN for one without objects of the area."""
        chosen = self.precision[_places(overlap), :, :, AREAS.index(area)]
        each: Float64[np.ndarray, " k"] = chosen.mean((0, 1))
        return each

    @cached_property
    def _drawn(self) -> Float64[np.ndarray, "r 2"]:
        """AP over all overlaps and at 0.5, of DRAWS draws of the pictures with replacement, always the same."""
        draws = np.random.default_rng(0)
        n = len(self.objects)
        made = []
        for _ in range(DRAWS // AT_ONCE):
            each = self.drawn(draws.multinomial(n, np.full(n, 1 / n), AT_ONCE))  # (r, t, k)
            made.append(np.stack([_mean(each.mean(1)), _mean(each[:, 0])], 1))
        return np.concatenate(made)

    def interval(self, overlap: float | None = None) -> tuple[float, float]:
        """95 % of the APs of DRAWS draws of n pictures with replacement; of all overlaps, or at 0.5. AP is no mean over
        pictures, so each draw is accumulated again; the matches stay. NaN for less than two pictures."""
        value = self.ap(overlap=overlap)
        if len(self.objects) < 2 or np.isnan(value):
            return np.nan, np.nan
        aps = self._drawn[:, 0 if overlap is None else 1]
        low, high = np.percentile([*aps[~np.isnan(aps)], value], (2.5, 97.5))
        return min(float(low), value), max(float(high), value)

    @property
    def matches(self) -> Matches:
        """What decides AP, without what is drawn of it."""
        return Matches(**{each.name: getattr(self, each.name) for each in fields(Matches)})


def match(
    truths: Sequence[Truth],
    found: Sequence[Detections],
    classes: int,
    kind: Literal["bbox", "segm"] = "bbox",
    most: int = MOST,
) -> Matched:
    """Score what was ``found`` on each picture by what is there, ``bbox`` by boxes or ``segm`` by masks.

    ``most``: detections of a picture and class that count. Raises UserError where faster-coco-eval is not installed.
    """
    need("faster_coco_eval", extra="tasks", purpose="scoring detections")
    from faster_coco_eval.core.coco import COCO
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster

    images = [{"id": i, "height": t.of_size.height, "width": t.of_size.width} for i, t in enumerate(truths)]
    categories = [{"id": c, "name": str(c)} for c in range(classes)]
    known: dict[str, Any] = {"images": images, "categories": categories, "info": {}}
    there = [entry for i, each in enumerate(truths) for entry in _truths(i, each, kind)]
    said = [entry for i, each in enumerate(found) for entry in _found(i, each, kind)]
    for number, entry in (*enumerate(there, 1), *enumerate(said, 1)):  # 0 would stand for none
        entry["id"] = number
    both = [COCO({**known, "annotations": entries}) for entries in (there, said)]
    evaluation = COCOeval_faster(*both, kind, separate_eval=True, print_function=_silent)
    evaluation.params.maxDets = [most]
    evaluation.evaluate()
    evaluation.accumulate()
    values = [np.where(evaluation.eval[key] < 0, np.nan, evaluation.eval[key]) for key in ("precision", "scores")]
    recall = np.where(evaluation.eval["recall"] < 0, np.nan, evaluation.eval["recall"])
    objects = np.zeros((len(truths), classes), np.int64)
    for i, truth in enumerate(truths):
        np.add.at(objects[i], truth.classes[~truth.crowd], 1)
    picture, klass, score, hit, ignored = _flat(evaluation._evalImgs_cpp, found)
    curves = (values[0][..., 0], values[1][..., 0], recall[..., 0])
    return Matched(picture, klass, score, hit, ignored, objects, *curves)


def _silent(*_: object) -> None: ...


def _truths(picture: int, truth: Truth, kind: str) -> list[dict[str, Any]]:
    columns = zip(_sides(truth.boxes), truth.classes.tolist(), truth.crowd.tolist(), truth.areas.tolist(), strict=True)
    made: list[dict[str, Any]] = [
        {"image_id": picture, "category_id": c, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for box, c, crowd, area in columns
    ]
    if kind == "segm":
        assert truth.masks is not None, "masks are scored where the truth has them"
        for entry, mask in zip(made, truth.masks, strict=True):
            entry["segmentation"] = compressed(mask)
    return made


def _found(picture: int, found: Detections, kind: str) -> list[dict[str, Any]]:
    columns = zip(_sides(found.boxes), found.classes.tolist(), found.scores.tolist(), strict=True)
    made: list[dict[str, Any]] = [
        {"image_id": picture, "category_id": c, "bbox": box, "area": box[2] * box[3], "score": score, "iscrowd": 0}
        for box, c, score in columns
    ]
    if kind == "segm":
        assert found.masks is not None, "masks are scored where the model answers them"
        for entry, mask in zip(made, found.masks, strict=True):
            entry |= {"segmentation": compressed(mask), "area": float(mask.counts[1::2].sum())}
    return made


def _sides(boxes: Float32[np.ndarray, "n 4"]) -> list[list[float]]:
    """x1 y1 x2 y2 -> x y width height."""
    whole = boxes.astype(np.float64)
    made: list[list[float]] = np.concatenate([whole[:, :2], whole[:, 2:] - whole[:, :2]], 1).tolist()
    return made


def _flat(
    matches: Sequence[Any], found: Sequence[Detections]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The detections that count, by picture, of all areas: the fields of ``Matched`` from ``picture`` to ``ignored``.

    ``matches``: of each class, area and picture, in that order, whose pickled state has the object that each detection
    has at each overlap (0: none), what each object has, scores, which objects and which detections are ignored.
    """
    n, steps = len(found), len(OVERLAPS)
    columns: list[tuple[int, int, Any, Any, Any]] = []
    for i in range(n):
        for c in np.unique(found[i].classes).tolist():
            taken, _, scores, _, ignored, *_ = matches[c * len(AREAS) * n + i].__getstate__()
            columns.append((i, c, scores, taken, ignored))
    counts = [len(scores) for _, _, scores, _, _ in columns]
    picture, klass = (np.repeat(np.array([row[j] for row in columns], np.int64), counts) for j in (0, 1))
    score = np.concatenate([np.zeros(0), *(row[2] for row in columns)]).astype(np.float32)
    none = np.zeros((steps, 0), bool)
    taken, ignored = (
        np.concatenate([none, *(np.array(row[j]).reshape(steps, -1) != 0 for row in columns)], 1) for j in (3, 4)
    )
    return picture, klass, score, taken & ~ignored, ignored


def _places(overlap: float | None) -> slice:
    if overlap is None:
        return slice(None)
    place = int(np.argmin(np.abs(OVERLAPS - overlap)))
    return slice(place, place + 1)


def _mean(values: Float64[np.ndarray, "*r k"]) -> Any:
    """The mean over the classes that are known; NaN where none is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(-1)
    return np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)
