"""Drift: what is measured is the population stability index, what chance gives is not called a shift."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import beta

from anyres.evaluation.drift import FEWEST, WINDOW, Confidences, HeldOut, Monitor, chance, stability, told
from anyres.flow import Size

SMALL, LARGE = Size(32, 32), Size(64, 48)


def sure(size: Size, n: int, seed: int) -> np.ndarray:
    """Confidences of one population: at the larger size the model is surer."""
    return np.asarray(beta(2, 2).rvs(n, random_state=seed) if size == SMALL else beta(6, 1).rvs(n, random_state=seed))


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    confidences = {str(size): Confidences.of(sure(size, 600, 1)) for size in (SMALL, LARGE)}
    return HeldOut(600, confidences, str(LARGE), {"32": 0.7, "64x48": 0.3}, 300)


def test_the_index_is_the_sum_over_bins() -> None:
    found = stability([50.0, 50.0], [80.0, 20.0])
    assert found == pytest.approx((0.8 - 0.5) * math.log(0.8 / 0.5) + (0.2 - 0.5) * math.log(0.2 / 0.5))
    assert stability([10.0, 20.0, 0.0], [100.0, 200.0, 0.0]) == 0
    assert math.isfinite(stability([10.0, 0.0], [0.0, 10.0]))
    assert chance(1, 100, 100) == 0
    assert chance(10, 10**6, 10**6) < chance(10, 600, 200) < 0.15


def test_chance_is_called_a_shift_one_time_in_twenty(held_out: HeldOut) -> None:
    """Other images of the same population, at changing shares of the two sizes."""
    beyond = 0
    for seed in range(60):
        monitor = Monitor(held_out)
        for size, n in ((SMALL, 150 + seed), (LARGE, 150 - seed)):
            for value in sure(size, n, 1000 + 2 * seed + (size == SMALL)):
                monitor.add(size, value)
        drift = monitor.drift("confidence")
        assert drift is not None
        beyond += drift.psi > drift.by_chance
    assert beyond <= 10, "the deciles are an estimate too, which adds a little"


def test_less_sure_answers_are_a_shift(held_out: HeldOut) -> None:
    monitor = Monitor(held_out)
    for value in sure(LARGE, 300, 5) ** 3:
        monitor.add(LARGE, value)
    drift = monitor.drift("confidence")
    assert drift is not None
    assert (drift.verdict, drift.images) == ("a shift", 300)
    assert drift.psi > 0.25
    assert "drift of 300 images from the 600 held-out ones: confidence" in told([drift], held_out)


def test_sizes_and_exits_shift(held_out: HeldOut) -> None:
    monitor = Monitor(held_out)
    for i in range(400):
        monitor.add(SMALL if i % 4 == 0 else LARGE, 0.5)
        monitor.add(SMALL if i % 10 < 7 else LARGE, 0.5, cascade=True)
    found = {drift.what: drift for drift in monitor.drifts()}
    assert found["size"].psi > 0.25, "a quarter was answered at a smaller size than where nothing presses"
    assert found["exit"].verdict == "inside the noise"
    monitor.add(Size(99, 99), 0.5, chosen=False)
    assert monitor.drift("confidence").images == 400, "nobody measured that size"  # type: ignore[union-attr]
    assert monitor.drift("size").images == 400, "and it was asked for"  # type: ignore[union-attr]
    for _ in range(300):
        monitor.add(LARGE, 0.5, cascade=True)
    assert monitor.drift("exit").verdict == "a shift"  # type: ignore[union-attr]


def test_old_images_are_forgotten(held_out: HeldOut) -> None:
    monitor = Monitor(held_out)
    for _ in range(FEWEST - 1):
        monitor.add(LARGE, 0.01)
    assert monitor.drifts() == [], "too few"
    monitor.add(LARGE, math.nan)
    monitor.add(LARGE, 0.01)
    assert monitor.drift("confidence").psi > 1  # type: ignore[union-attr]
    for value in sure(LARGE, WINDOW, 7):
        monitor.add(LARGE, value)
    drift = monitor.drift("confidence")
    assert drift is not None
    assert (drift.images, drift.psi < drift.by_chance) == (WINDOW, True)
    assert {size for size, _ in monitor._seen["confidence"]} == {str(LARGE)}
    assert sum(monitor._seen["confidence"].values()) == WINDOW


def test_a_model_that_is_always_sure_has_one_bin() -> None:
    held_out = HeldOut(50, {"32": Confidences.of(np.ones(50))}, "32")
    monitor = Monitor(held_out)
    for _ in range(300):
        monitor.add(SMALL, 1.0)
    assert [(drift.what, drift.psi, drift.verdict) for drift in monitor.drifts()] == [
        ("confidence", 0.0, "inside the noise"),
        ("size", 0.0, "inside the noise"),
    ]
    for _ in range(300):
        monitor.add(SMALL, 0.6)
    assert monitor.drift("confidence").verdict == "a shift"  # type: ignore[union-attr]


def test_histograms_survive_as_json(held_out: HeldOut) -> None:
    assert HeldOut.read(json.loads(json.dumps(held_out.plain()))) == held_out
    for broken in ({}, held_out.plain() | {"confidences": {"32": {"edges": [0.5], "counts": [1]}}}):
        with pytest.raises(ValueError, match=r"\w"):
            HeldOut.read(broken)
    wrong = held_out.plain()
    wrong["confidences"]["32"]["edges"] = (0.9, *wrong["confidences"]["32"]["edges"][1:])
    with pytest.raises(ValueError, match="ascending"):
        HeldOut.read(wrong)
