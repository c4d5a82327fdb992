"""What a report shows of a detector: figures, curves, confusion, and objects drawn where they are."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image

from anyres.evaluation.coco import CocoScores, Detections, Truth
from anyres.evaluation.detection_page import detection_sections, object_size_sections
from anyres.evaluation.measured import BOX_METRICS
from anyres.evaluation.plots.objects import overlay, truth_and_answer, truth_over
from anyres.flow import Cost, Estimate, Objects, Rle, Size, SizeResult

CLASSES = ("cat", "dog")
SIZE = Size(60, 90)


def found_on(box: tuple[float, ...], kind: int = 0, score: float = 0.75) -> Detections:
    mask = np.zeros(SIZE, bool)
    x1, y1, x2, y2 = map(int, box)
    mask[y1:y2, x1:x2] = True
    return Detections(np.array([box], np.float32), np.array([score], np.float32), np.array([kind]), (Rle.of(mask),))


def truth_of(found: Detections) -> Truth:
    n = len(found)
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1).astype(np.float64)
    return Truth(found.boxes, found.classes, np.zeros(n, bool), areas, found.masks, SIZE)


def test_objects_are_drawn_where_they_are() -> None:
    picture = torch.full((3, *SIZE), 100, dtype=torch.uint8)
    drawn = overlay(picture, found_on((30, 20, 60, 50)), CLASSES)
    assert drawn.shape == picture.shape
    changed = (drawn != picture).any(0)
    assert changed[20:50, 30:60].all()  # its mask
    assert not changed[53:].any()
    assert not changed[:, :29].any()
    assert torch.equal(overlay(picture, found_on((1, 1, 2, 2)).above(0.9), CLASSES), picture)
    gray = overlay(picture[:1], found_on((30, 20, 60, 50)), CLASSES)
    assert torch.equal(gray, drawn)


def test_words_are_left_out_where_they_would_hide_the_objects() -> None:
    picture = torch.full((3, 300, 300), 100, dtype=torch.uint8)

    def row(count: int) -> Detections:
        boxes = np.array([[13 * i + 2, 150, 13 * i + 8, 156] for i in range(count)], np.float32)
        return Detections(boxes, np.full(count, 0.5, np.float32), np.zeros(count, np.int64))

    above = [(overlay(picture, row(count), CLASSES) != picture)[:, :149].any() for count in (20, 21)]
    assert above == [True, False]
    one = truth_over(
        picture, Truth.of(Objects(row(1).boxes, np.zeros(1, np.int64), (None,), np.zeros(1, bool), SIZE)), ["cat"]
    )
    assert not (one != picture)[:, :149].any()


def test_masks_that_overlap_stay_visible() -> None:
    picture = torch.full((3, *SIZE), 100, dtype=torch.uint8)
    both = [found_on((30, 20, 60, 50)), found_on((30, 20, 60, 50), 1)]
    twice = Detections(*(np.concatenate([getattr(one, key) for one in both]) for key in ("boxes", "scores", "classes")))
    masked = Detections(twice.boxes, twice.scores, twice.classes, tuple(one.masks[0] for one in both))  # type: ignore[index]
    assert int(overlay(picture, masked, CLASSES)[:, 38:48, 33:57].sum(0).min()) > 100


def test_panels_of_a_picture_kept_smaller_show_boxes_in_place() -> None:
    found = found_on((30, 20, 60, 50))
    small, full = (torch.full((3, h, w), 100, dtype=torch.uint8) for h, w in ((30, 45), SIZE))
    sheets = [truth_and_answer([(pixels, truth_of(found), found)], CLASSES) for pixels in (small, full)]
    assert sheets[0] == sheets[1]


def scores(wrong: bool) -> CocoScores:
    right = found_on((30, 20, 60, 50))
    other = found_on((0, 0, 20, 20), 1, 0.8) if wrong else right
    truths = (truth_of(right), truth_of(right))
    return CocoScores(np.array([4, 2]), truths, (right, other), 2)


def test_sections_show_classes_curves_confusion_and_the_worst_pictures() -> None:
    asked: list[int] = []

    def pixels(index: int) -> torch.Tensor:
        asked.append(index)
        return torch.zeros(3, *SIZE, dtype=torch.uint8)

    sections = detection_sections(scores(wrong=True), CLASSES, Size(64, 64), pixels)
    assert [section.anchor for section in sections] == ["classes", "confusion", "pictures"]
    table = sections[0].tables[0]
    assert table.rows[0][:5] == ["cat", "2", "50.5", "50.5", "50.5"]
    assert len(table.rows[0]) == len(table.columns)
    assert asked == [2, 4]
    assert "0, 100" in sections[2].lead
    for section in sections:
        assert section.pictures is not None
        for content in section.pictures:
            with Image.open(io.BytesIO(content)) as image:
                assert min(image.size) > 100


def test_the_curve_by_size_of_objects_needs_two_sizes_of_objects() -> None:
    def point(side: int, small: float) -> SizeResult:
        values = {metric.key: Estimate(side / 500) for metric in BOX_METRICS} | {"box_ap_small": Estimate(small)}
        values |= {"box_ap_medium": Estimate(math.nan)}
        return SizeResult("m", Size(side, side), values, BOX_METRICS, 3, Cost(1.0, 1.0, 1))

    (section,) = object_size_sections([point(64, 0.0), point(128, 0.2)])
    assert section.anchor == "object_sizes"
    assert section.pictures is not None
    assert section.pictures[0] != section.pictures[1]
    assert object_size_sections([point(64, math.nan), point(128, math.nan)]) == []
