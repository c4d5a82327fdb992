"""Parts of a picture, and what is said of them, joined."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from anyres.config import UserError
from anyres.evaluation.detections import Detections
from anyres.evaluation.joined import averaged, merged, parts_of
from anyres.flow import Geometry, Rle, Size

SIZE = Size(70, 130)


def part(top: int, left: int, side: int = 64, of: Size = SIZE) -> Geometry:
    return Geometry(of, (float(top), float(left), float(min(side, of.height)), float(side)), Size(32, 32))


def found(*rows: tuple[float, ...], masks: bool = False) -> Detections:
    """Rows of x1 y1 x2 y2, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    drawn = tuple(Rle(np.array([i, SIZE.height * SIZE.width - i]), SIZE) for i in range(len(table)))
    return Detections(
        table[:, :4].astype(np.float32),
        table[:, 4].astype(np.float32),
        table[:, 5].astype(np.int64),
        drawn if masks else None,
    )


def test_parts_cover_a_picture_and_overlap() -> None:
    for size in (Size(64, 64), Size(30, 200), Size(65, 64), Size(301, 517)):
        seen = np.zeros(size, np.int64)
        places = parts_of(size, 64)
        for top, left, height, width in places:
            assert (height, width) == (min(64, size.height), min(64, size.width))
            assert 0 <= top <= size.height - height
            assert 0 <= left <= size.width - width
            seen[top : top + height, left : left + width] += 1
        assert seen.min() == 1
        lefts = sorted({left for _, left, _, _ in places})
        assert all(b - a <= 48 for a, b in pairwise(lefts))
    assert parts_of(Size(64, 20), 64) == [(0, 0, 64, 20)]


def test_an_object_seen_twice_is_one() -> None:
    twice = [(found((50, 10, 60, 20, 0.8, 1)), part(0, 0)), (found((50, 10, 61, 20, 0.9, 1)), part(0, 33))]
    made = merged(twice)
    assert made.boxes.tolist() == [[50, 10, 61, 20]]
    assert made.scores.tolist() == [np.float32(0.9)]
    others = merged([*twice, (found((50, 10, 60, 20, 0.7, 0)), part(0, 0))])
    assert others.classes.tolist() == [1, 0]


def test_a_box_that_its_part_cuts_gives_way_to_the_whole_one() -> None:
    cut = (found((52, 10, 63.5, 40, 0.95, 0)), part(0, 0))
    seen_whole = (found((52, 10, 90, 40, 0.6, 0)), part(0, 33))
    assert merged([cut, seen_whole]).boxes.tolist() == [[52, 10, 90, 40]]
    assert len(merged([cut])) == 1  # nobody saw it whole
    beside = (found((52, 41, 63.5, 60, 0.95, 0)), part(0, 0))  # another object
    assert len(merged([beside, seen_whole])) == 2
    at_the_edge = (found((0, 10, 12, 40, 0.9, 0), (0, 10, 30, 40, 0.8, 0)), part(0, 0))  # the picture's own
    assert len(merged([at_the_edge])) == 2


def test_a_perfect_detector_finds_each_object_once_in_parts() -> None:
    rng = np.random.default_rng(0)
    size = Size(300, 420)
    for _ in range(20):
        grid = [(x, y) for x in range(5, 400, 40) for y in range(5, 280, 40)]
        chosen = rng.choice(len(grid), 12, replace=False)
        sides = rng.uniform(8, 30, (12, 2))
        corner = np.array(grid, np.float64)[chosen]
        truth = np.concatenate([corner, np.minimum(corner + sides, [size.width, size.height])], 1)
        given = []
        for top, left, height, width in parts_of(size, 128):
            inside = np.clip(truth, [left, top, left, top], [left + width, top + height] * 2)
            area = (inside[:, 2:] - inside[:, :2]).clip(0).prod(1)
            there = np.flatnonzero(area > 0.2 * (truth[:, 2:] - truth[:, :2]).prod(1))
            rows = [(*inside[i], rng.uniform(0.5, 1), i % 3) for i in there]
            crop = (float(top), float(left), float(height), float(width))
            given.append((found(*rows), Geometry(size, crop, Size(128, 128))))
        made = merged(given)
        assert sorted(made.boxes.tolist()) == sorted(truth.astype(np.float32).tolist())


def test_masks_go_with_their_boxes() -> None:
    made = merged([(found((1, 1, 9, 9, 0.4, 0), (20, 1, 29, 9, 0.7, 0), masks=True), part(0, 0))])
    assert made.masks is not None
    assert [mask.counts[0] for mask in made.masks] == [1, 0]
    nothing = merged([(found(masks=True), part(0, 0)), (found(masks=True), part(0, 33))])
    assert len(nothing) == 0
    assert nothing.masks == ()


def test_logits_are_averaged_where_parts_overlap() -> None:
    size = Size(4, 6)
    crops = ((0.0, 0.0, 4.0, 4.0), (0.0, 2.0, 4.0, 4.0))
    parts = [(torch.full((3, 4, 4), float(i + 1)), Geometry(size, crop, Size(4, 4))) for i, crop in enumerate(crops)]
    made = averaged(parts)
    assert made.shape == (3, 4, 6)
    assert made[0, 0].tolist() == [1, 1, 1.5, 1.5, 2, 2]
    coarse = averaged([(torch.arange(4.0).reshape(1, 2, 2), Geometry(size, (0.0, 0.0, 4.0, 6.0), Size(2, 3)))])
    expected = torch.nn.functional.interpolate(torch.arange(4.0).reshape(1, 1, 2, 2), (4, 6), mode="bilinear")
    assert torch.equal(coarse, expected[0])
    huge = Geometry(Size(60000, 60000), (0.0, 0.0, 4.0, 4.0), Size(4, 4))
    with pytest.raises(UserError, match="more than 4 GiB: give a smaller picture"):
        averaged([(torch.zeros(3, 4, 4), huge)])
