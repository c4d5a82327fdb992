"""Two models' maps on the same pictures, compared."""

from __future__ import annotations

import numpy as np
import pytest

from anyres.evaluation.miou import RESAMPLES, MapScores, compare_maps

PICTURES, CLASSES, PIXELS = 40, 3, 900


def scores(right: float, seed: int) -> MapScores:
    """Of each picture 300 pixels a class; a share ``right`` of them, more or less, is found, others are taken for the
    next class."""
    draws = np.random.default_rng(seed)
    found = np.clip(draws.normal(right, 0.05, (PICTURES, CLASSES)), 0, 1) * PIXELS / CLASSES
    found = found.astype(np.int64)
    own = np.full((PICTURES, CLASSES), PIXELS // CLASSES)
    said = found + np.roll(own - found, 1, axis=1)
    return MapScores(np.arange(PICTURES), np.stack([found, own, said], axis=1))


def part(whole: MapScores, places: np.ndarray) -> MapScores:
    return MapScores(np.arange(len(places)), whole.counts[places])


def test_a_better_model_is_clearly_better_and_an_equal_one_is_not() -> None:
    a, b = scores(0.9, 0), scores(0.8, 1)
    found, turned = compare_maps(a, b), compare_maps(b, a)
    assert found.difference == pytest.approx(100 * (a.miou - b.miou))
    assert found.low < found.difference < found.high
    assert not found.inside_noise
    assert found.p_value < 0.001
    assert found.only_a > 30 > 10 > found.only_b
    assert (turned.difference, turned.only_a) == (-found.difference, found.only_b)
    assert turned.p_value == pytest.approx(found.p_value, abs=0.002)
    same = compare_maps(a, a)
    assert (same.difference, same.low, same.high, same.p_value, same.only_a, same.only_b) == (0, 0, 0, 1, 0, 0)
    assert same.inside_noise
    close = compare_maps(scores(0.8, 2), b)
    assert close.inside_noise
    assert close.p_value > 0.05


def test_the_comparison_is_that_of_a_plain_loop() -> None:
    a, b = scores(0.82, 3), scores(0.8, 4)
    found = compare_maps(a, b)
    draws = np.random.default_rng(9)
    drawn = [draws.integers(PICTURES, size=PICTURES) for _ in range(RESAMPLES)]
    low, high = np.percentile([100 * (part(a, places).miou - part(b, places).miou) for places in drawn], (2.5, 97.5))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.25)
    exchanged = []
    for _ in range(1000):
        mine = draws.integers(2, size=PICTURES)[:, None, None] == 0
        first, second = (np.where(mine, x, y) for x, y in ((a.counts, b.counts), (b.counts, a.counts)))
        exchanged.append(MapScores(a.index, first).miou - MapScores(a.index, second).miou)
    expected = np.mean(np.abs(exchanged) >= abs(a.miou - b.miou))
    assert found.p_value == pytest.approx(expected, abs=0.05)


def test_other_pictures_cannot_be_paired() -> None:
    a = scores(0.9, 0)
    with pytest.raises(ValueError, match="cannot pair 40 with 39"):
        compare_maps(a, part(a, np.arange(39)))
