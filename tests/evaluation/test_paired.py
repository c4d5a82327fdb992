"""Models compared image by image, whatever the task; and scores per image as a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.stats import binomtest, fisher_exact

from anyres.config import Damaged
from anyres.evaluation.coco import CocoScores
from anyres.evaluation.detections import Detections, Truth
from anyres.evaluation.evaluator import ImageScores, ImageValues
from anyres.evaluation.measured import BOX_AP, LOSS, MEAN_AP, MIOU, TOP1
from anyres.evaluation.metrics import Comparison, Scores, compare_apart
from anyres.evaluation.miou import MapScores
from anyres.evaluation.multilabel import LabelScores
from anyres.evaluation.page import Pairing, as_one_family
from anyres.evaluation.paired import compare_curves, compare_scores, compare_sets, compare_values, compared_by
from anyres.evaluation.scores_file import About, KeptScores, kept_form, read_scores, write_scores
from anyres.flow import Estimate, Metric, Size

ABOUT = About("classify", "0" * 64, ("a", "b", "c"), "photos", "test", "abc")
PIXELS = Metric("mae", "MAE", unit="px", higher_is_better=False)


def classes(seed: int, n: int = 60, right: float = 0.6) -> Scores:
    draws = np.random.default_rng(seed)
    target = np.random.default_rng(9).integers(3, size=n)
    predicted = np.where(draws.random(n) < right, target, draws.integers(3, size=n))
    numbers = [draws.random(n).astype(np.float32) for _ in range(2)]
    index = np.flatnonzero(np.random.default_rng(8).random(2 * n) < 2)[:n] * 2
    return Scores(index, target, predicted, numbers[0], predicted == target, draws.random(n) < 0.9, numbers[1])


def labels(seed: int, n: int = 40) -> LabelScores:
    target = np.random.default_rng(9).random((n, 3)) < 0.4
    noise = np.random.default_rng(seed).normal(size=(n, 3)) * (0.3 if seed else 3)
    return LabelScores(np.arange(n), target, (target + noise).astype(np.float32))


def maps(seed: int, n: int = 12) -> MapScores:
    draws = np.random.default_rng(seed)
    own = np.random.default_rng(9).integers(0, 90, (n, 5))
    own[:, 3] = 0
    right = (own * (0.5 + 0.5 * draws.random((n, 5)))).astype(np.int64)
    return MapScores(np.arange(n), np.stack([right, own, own], 1))


def boxes(seed: int, n: int = 10) -> CocoScores:
    draws, there = np.random.default_rng(seed), np.random.default_rng(9)
    truths, found = [], []
    for _ in range(n):
        corners = there.uniform(0, 50, (2, 2))
        box = np.concatenate([corners, corners + there.uniform(10, 40, (2, 2))], 1).astype(np.float32)
        kinds, size = there.integers(2, size=2), Size(100, 100)
        areas = (box[:, 2:] - box[:, :2]).prod(1).astype(np.float64)
        truths.append(Truth(box, kinds, np.zeros(2, bool), areas, None, size))
        moved = (box + draws.normal(scale=1 + 6 * (seed == 0), size=(2, 4))).astype(np.float32)
        found.append(Detections(moved, draws.random(2).astype(np.float32), kinds, None))
    return CocoScores(np.arange(n), tuple(truths), tuple(found), 2)


def values(seed: int, n: int = 30) -> ImageValues:
    return ImageValues("mae", np.arange(n), np.random.default_rng(seed).random(n))


KINDS = {"classes": classes, "labels": labels, "maps": maps, "boxes": boxes, "values": values}
METRICS = {"classes": TOP1, "labels": MEAN_AP, "maps": MIOU, "boxes": BOX_AP, "values": PIXELS}


def same(a: ImageScores, b: ImageScores) -> bool:
    """Whether all that they hold is equal, bit for bit."""
    mine, theirs = vars(a), vars(b)
    if "matches" in mine:
        mine, theirs = vars(mine["matches"]), vars(theirs["matches"])
    mine = {key: value for key, value in mine.items() if isinstance(value, np.ndarray)}
    return bool(mine) and all(
        np.array_equal(value, theirs[key]) and value.dtype == theirs[key].dtype for key, value in mine.items()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_scores_survive_in_a_file(kind: str, tmp_path: Path) -> None:
    scores = {Size(32, 32): KINDS[kind](0), Size(48, 64): KINDS[kind](1)}
    path = tmp_path / "scores.safetensors"
    assert write_scores(KeptScores(ABOUT, scores), path)
    again = read_scores(path)
    assert again is not None
    assert again.about == ABOUT
    assert list(again.by_size) == list(scores)
    for size, one in scores.items():
        assert same(kept_form(one), again.by_size[size]), size
    assert not same(again.by_size[Size(32, 32)], again.by_size[Size(48, 64)])


def test_a_classified_image_costs_thirteen_bytes_a_size(tmp_path: Path) -> None:
    path, n = tmp_path / "scores.safetensors", 5000
    sizes = [Size(side, side) for side in range(32, 72, 8)]
    write_scores(KeptScores(ABOUT, {size: classes(size.width, n) for size in sizes}), path)
    assert path.stat().st_size == pytest.approx(n * (13 * len(sizes) + 8), rel=0.02)


def test_scores_of_an_unknown_kind_are_not_kept(tmp_path: Path) -> None:
    class Ours:
        index, n = np.arange(2), 2

        def estimates(self) -> dict[str, Estimate]:
            return {}

    path = tmp_path / "scores.safetensors"
    path.write_bytes(b"of before")
    assert not write_scores(KeptScores(ABOUT, {Size(32, 32): Ours()}), path)
    assert not path.exists(), "those of an earlier measurement would be taken for these"
    assert read_scores(path) is None


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    write_scores(KeptScores(ABOUT, {Size(32, 32): classes(0)}), path)
    whole = path.read_bytes()
    for content in (b"", whole[:200], whole[:-40], whole.replace(b'\\"classes\\"', b'\\"glasses\\"')):
        path.write_bytes(content)
        with pytest.raises(Damaged, match=r"scores\.safetensors is damaged \("):
            read_scores(path)
    save_file({"32.index": np.arange(3)}, path, {"anyres": "{}"})
    with pytest.raises(Damaged):
        read_scores(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_paired(kind: str) -> None:
    a, b = (kept_form(KINDS[kind](seed)) for seed in (0, 1))
    metric = METRICS[kind]
    one, other = compare_scores(a, b, metric), compare_scores(b, a, metric)
    assert one is not None
    assert other is not None
    apart = metric.scale * (a.estimates()[metric.key].value - b.estimates()[metric.key].value)
    assert one.difference == pytest.approx(apart, abs=1e-6)
    assert one.low <= one.difference <= one.high
    assert (one.difference, one.only_a, one.only_b) == (pytest.approx(-other.difference), other.only_b, other.only_a)
    itself = compare_scores(a, a, metric)
    assert itself is not None
    assert (itself.difference, itself.only_a, itself.only_b, itself.inside_noise) == (0, 0, 0, True)
    assert all(len(words) > 4 for words in compared_by(a))
    assert compare_scores(a, b, LOSS) is None, "of another metric"


@pytest.mark.parametrize("kind", ["labels", "boxes"])
def test_a_planted_difference_is_seen(kind: str) -> None:
    """Model 1 is far better than model 0 on the same images."""
    good, bad = (kept_form(KINDS[kind](seed)) for seed in (1, 0))
    found = compare_scores(good, bad, METRICS[kind])
    assert found is not None
    assert found.difference > 5
    assert found.low > 0
    assert found.p_value < 0.05
    assert not found.inside_noise


def test_other_images_are_not_paired() -> None:
    a = classes(0)
    with pytest.raises(ValueError, match="cannot pair 60 with 59"):
        compare_scores(a, classes(1, 59), TOP1)
    with pytest.raises(ValueError, match="cannot pair"):
        compare_scores(a, replace(a, index=a.index + 1), TOP1)
    with pytest.raises(ValueError, match="cannot pair"):
        compare_scores(labels(0), replace(labels(1), target=~labels(1).target), MEAN_AP)
    found = compare_sets(a, classes(1, 59))
    assert found is not None
    assert compare_sets(values(0), values(1)) is None


def test_pairing_sees_what_two_sets_would_not() -> None:
    """Of 400 images one model loses 12 that the other has, and has none that it lacks."""
    right = np.random.default_rng(0).random(400) < 0.5
    fewer = right.copy()
    fewer[np.flatnonzero(right)[:12]] = False
    scores = [replace(classes(0, 400), correct=one) for one in (right, fewer)]
    paired = compare_scores(*scores, TOP1)
    apart = compare_apart(right, fewer)
    assert paired is not None
    assert (paired.only_a, paired.only_b, paired.p_value) == (12, 0, binomtest(0, 12).pvalue)
    assert not paired.inside_noise
    table = [[int(right.sum()), int((~right).sum())], [int(fewer.sum()), int((~fewer).sum())]]
    assert apart.p_value == fisher_exact(table).pvalue
    assert apart.inside_noise
    assert (apart.difference, paired.difference) == (pytest.approx(3), 3)
    assert apart.high - apart.low > 2 * (paired.high - paired.low)


def test_two_shares_have_newcombes_interval() -> None:
    """His table II, example (a), method 10: 56 of 70 against 48 of 80."""
    found = compare_apart(np.arange(70) < 56, np.arange(80) < 48)
    assert (found.low, found.high) == (pytest.approx(5.24, abs=0.01), pytest.approx(33.39, abs=0.01))


def test_chance_is_called_clear_one_time_in_twenty() -> None:
    draws = np.random.default_rng(0)
    clear = 0
    for _ in range(30):
        a, b = draws.random((2, 40))
        clear += not compare_values(a, b, TOP1).inside_noise
    assert clear <= 5
    better = compare_values(*(np.linspace(0, 1, 40) + shift for shift in (0.0, 0.01)), PIXELS)
    assert (better.only_a, better.only_b, better.difference) == (40, 0, pytest.approx(-0.01)), "lower is better"
    assert better.p_value < 0.001


def test_a_whole_curve_is_one_test() -> None:
    sizes = range(4)
    good, bad = [classes(s, 300, 0.75) for s in sizes], [classes(s + 10, 300, 0.55) for s in sizes]
    single = [compare_scores(a, b, TOP1) for a, b in zip(good, bad, strict=True)]
    whole = compare_curves(good, bad, TOP1)
    assert whole is not None
    assert whole.difference == pytest.approx(np.mean([one.difference for one in single if one]))
    assert whole.p_value < 0.001
    assert whole.high - whole.low < min(one.high - one.low for one in single if one), "four sizes tell more than one"
    assert compare_curves([maps(0)], [maps(1)], MIOU) is None, "no mean over images"


def test_many_tests_are_one_family() -> None:
    assert as_one_family([]) == []
    found = [Comparison(3.0, 1.0, 5.0, p_value, 40, 20, 500) for p_value in (0.01, 0.04, 0.03, 0.6)]
    pairs = [Pairing("a", "b", Size(32, 32), each) for each in found]
    assert [pair.winner for pair in pairs] == ["a", "a", "a", None]
    assert as_one_family(pairs[:1]) == pairs[:1]
    together = as_one_family(pairs)
    assert [pair.p_adjusted for pair in together] == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.6])
    assert [pair.winner for pair in together] == ["a", None, None, None]
