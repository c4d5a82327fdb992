import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from anyres.config import UserError
from anyres.evaluation.choice import pick
from anyres.evaluation.curve import measure_quality
from anyres.evaluation.curve_file import read_csv, write_csv
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.plots.curve import plot, png
from anyres.evaluation.plots.label_placement import spread
from anyres.evaluation.plots.theme import TALL, WIDE, Sheet
from anyres.flow import Batch, Estimate, Labels, Metric, Size, SizeResult
from anyres.tasks import known_metrics
from anyres.tasks.classify import TopK

from .curves import TRAINED, curve, pixel_errors, point

POINTS = st.lists(  # what ``point`` takes: beartype draws from `random` when it checks a point, as no strategy may
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(1, 512),
        st.integers(1, 512),
        st.integers(0, 20).map(lambda k: k / 20),
        st.sampled_from([1.0, 2.0, 3.5, 8.0, math.nan]),
    ),
    min_size=1,
    max_size=12,
)
CPU = EvalSettings(torch.device("cpu"))
FIRST = ["model", "height", "width", "top1", "n", "latency_ms", "macs"]
COLUMNS = [*FIRST, "top1_low", "top1_high", "top5", "loss", "images_per_s"]
COLUMNS += ["latency_low_ms", "latency_high_ms", "disturbed"]
MIN_TOP1 = st.one_of(st.none(), st.integers(0, 20).map(lambda k: k / 20))
MAX_MS = st.one_of(st.none(), st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0]))


@given(POINTS, MIN_TOP1, MAX_MS)
def test_pick_keeps_every_bound_and_nothing_better_does(
    drawn: list[tuple[str, int, int, float, float]], min_top1: float | None, max_ms: float | None
) -> None:
    points = [point(*values, n=20) for values in drawn]
    fit = [p for p in points if min_top1 is None or p.best.value >= min_top1]
    fit = [p for p in fit if max_ms is None or p.cost.latency_ms <= max_ms]
    if not fit or (min_top1 is None and max_ms is None):
        with pytest.raises(UserError) as refusal:
            pick(points, min_top1, max_ms)
        assert "\n" not in str(refusal.value)
        return
    chosen = pick(points, min_top1, max_ms)
    assert any(chosen is p for p in fit)
    if min_top1 is None:
        assert chosen.best == max(p.best for p in fit)
        fit = [p for p in fit if p.best == chosen.best]
    timed = [p for p in fit if not math.isnan(p.cost.latency_ms)]
    if timed:
        assert chosen.cost.latency_ms == min(p.cost.latency_ms for p in timed)
        assert chosen.cost.macs == min(p.cost.macs for p in timed if p.cost.latency_ms == chosen.cost.latency_ms)


def test_pick_on_the_curve() -> None:
    points = [p for p in curve() if p.model == "any-size"]
    assert pick(points, 0.74).size == Size(64, 64)
    assert pick(points, 76.4 / 100).size == Size(96, 96), "764 right of 1000 are 76.4 %"
    assert pick(points, max_ms=7.1).size == Size(96, 160)
    assert pick(points, max_ms=5.0).size == Size(96, 96)
    assert pick(points, 0.75, max_ms=6.0).size == Size(96, 96)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"bound": 0.9}, "no size reaches top-1 90.0 %: the most accurate is size 96x160 of any-size (77.0 %, 7.1"),
        ({"max_ms": 2.0}, "no size runs within 2 ms: the fastest is size 32 of any-size (68.1 %, 3.1 ms)"),
        ({"bound": 0.76, "max_ms": 4.0}, "most accurate within it is size 64 of any-size (74.0 %, 3.6 ms); the f"),
        ({"bound": 0.76, "max_ms": 4.0}, "fastest that accurate is size 96 of any-size (76.4 %, 4.9 ms)"),
        ({"bound": 0.9, "max_ms": 1.0}, "no size reaches top-1 90.0 % and runs within 1 ms: the most accurate is"),
        ({}, "say what the size has to do"),
        ({"bound": 76.4}, "write 76.4 % as 0.764"),
    ],
)  # fmt: skip
def test_refusals_name_the_best_available(bounds: dict[str, float], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        pick([p for p in curve() if p.model == "any-size"], **bounds)
    assert words in str(refusal.value)


def assert_same(found: list[SizeResult], expected: list[SizeResult]) -> None:
    """Equal, where NaN is NaN."""
    assert [repr(result) for result in found] == [repr(result) for result in expected]


def test_csv_survives_the_round_trip(tmp_path: Path) -> None:
    points = [replace(p, model='one, "two"\nthree') for p in curve()]
    points = [replace(p, metrics={**p.metrics, "loss": Estimate(1 / 3)}) for p in points]
    path = tmp_path / "new" / "curve.csv"
    write_csv(points, path)
    assert_same(read_csv(path, known_metrics()), points)
    header = next(csv.reader(path.read_text().splitlines()))
    assert header[:7] == ["model", "height", "width", "top1", "n", "latency_ms", "macs"]
    assert header == COLUMNS
    assert [p.name for p in path.parent.iterdir()] == ["curve.csv"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("model,height\na,1\n", "lacks the column 'width'"),
     (",".join(COLUMNS) + "\na,x" + ",1" * (len(COLUMNS) - 2) + "\n", "invalid literal"),
     (",".join(COLUMNS) + "\na,1\n", "is no curve")],
)  # fmt: skip
def test_a_broken_csv_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        read_csv(tmp_path / "curve.csv", known_metrics())
    with pytest.raises(UserError, match="no curve at"):
        read_csv(tmp_path / "none.csv", known_metrics())


def test_quality_is_measured_at_the_size_that_is_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batch = Batch(views=(torch.randn(8, 3, 6, 9),), targets=Labels(torch.arange(8) % 6), index=torch.arange(8))
    quality = measure_quality(model, (TopK(),), Size(6, 9), lambda: [batch], CPU)
    top1 = quality.metrics["top1"]
    assert list(quality.metrics) == ["top1", "top5", "loss"]
    assert quality.scores.n == 8
    assert top1.value == quality.scores.top1
    assert top1.low <= top1.value <= top1.high
    assert quality.metrics["top5"].value >= top1.value
    with pytest.raises(ValueError, match="a batch of size 6x9 was given for the measurement at size 6"):
        measure_quality(model, (TopK(),), Size(6, 6), lambda: [batch], CPU)


class Counted:
    """Scores of an evaluator that only counts, under a name of its own."""

    def __init__(self, key: str, index: list[int]) -> None:
        self.key, self.index = key, np.array(index)

    @property
    def n(self) -> int:
        return len(self.index)

    def estimates(self) -> dict[str, Estimate]:
        return {self.key: Estimate(float(self.n))}


class Counting:
    """An evaluator that counts images."""

    def __init__(self, key: str) -> None:
        self.key = key

    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> Counted:
        return Counted(self.key, [i for batch in batches for i in batch.index.tolist()])


def test_several_evaluators_are_put_together() -> None:
    """Each sees all batches, opened anew for it; the first one's scores per image are kept."""
    opened: list[Iterator[Batch]] = []

    def batches() -> Iterator[Batch]:
        shown = (Batch((torch.zeros(2, 3, 4, 4),), Labels(torch.zeros(2)), torch.arange(i, i + 2)) for i in (0, 2, 4))
        opened.append(shown)
        return shown

    quality = measure_quality(nn.Identity(), [Counting("a"), Counting("b")], Size(4, 4), batches, CPU)
    assert {key: estimate.value for key, estimate in quality.metrics.items()} == {"a": 6.0, "b": 6.0}
    assert isinstance(quality.scores, Counted)
    assert quality.scores.key == "a"
    assert len(opened) == 2
    with pytest.raises(ValueError, match="two evaluators measure 'a'"):
        measure_quality(nn.Identity(), [Counting("a"), Counting("a")], Size(4, 4), batches, CPU)


def test_an_error_in_pixels_survives_the_round_trip(tmp_path: Path) -> None:
    """A headline of which less is better, without interval; another metric that has one at some sizes only."""
    results = pixel_errors()
    path = tmp_path / "curve.csv"
    write_csv(results, path)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0])[:7] == ["model", "height", "width", "mae", "n", "latency_ms", "macs"]
    assert [row["mae_low"] for row in rows] == ["nan"] * len(rows)
    assert [bool(row["within_low"]) for row in rows] == [not math.isnan(r.metrics["within"].low) for r in results]
    described = {metric.key: metric for metric in results[0].described}
    assert_same(read_csv(path, described), results)
    unknown = read_csv(path, {})
    assert unknown[0].headline == Metric("mae", "mae", unit="")


def test_pick_an_error_below_a_bound() -> None:
    results = pixel_errors()
    assert pick(results, bound=3.6).size == Size(64, 64), "the cheapest with an error of at most 3.6 px"
    assert pick(results, bound=2.5).size == Size(96, 96)
    assert pick(results, max_ms=1e3).size == Size(128, 128), "the least error"
    assert pick(results, bound=76.4).size == Size(32, 32), "no share: any number is a bound"
    with pytest.raises(UserError) as refusal:
        pick(results, bound=1.0)
    assert str(refusal.value) == ("no size comes down to MAE 1 px: the best is size 128 of ruler (2.25 px, 6.8 ms)")
    with pytest.raises(UserError, match="and runs within 1 ms: the best is size 128 of ruler"):
        pick(results, bound=1.0, max_ms=1.0)
    with pytest.raises(UserError, match="the fastest that good is size 96 of ruler"):
        pick(results, bound=2.5, max_ms=4.0)


@pytest.mark.parametrize("sheet", [WIDE, TALL])
def test_the_picture_of_an_error(sheet: Sheet) -> None:
    """Without intervals, and where every value is the same."""
    for results in (pixel_errors(), [replace(r, metrics=pixel_errors()[0].metrics) for r in pixel_errors()]):
        with Image.open(io.BytesIO(png(results, sheet=sheet))) as image:
            assert len(image.getcolors(1 << 20) or []) > 50


def test_the_picture_shows_every_model(tmp_path: Path) -> None:
    path = tmp_path / "new" / "curve.png"
    plot(curve(), path, title="A title", train_sizes=TRAINED)
    with Image.open(path) as image:
        assert image.size == (2400, 1040)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels[0] == 255).all()
    for colour in ((0x00, 0x67, 0xA8), (0xC2, 0x50, 0x0A)):
        assert (pixels == colour).all(1).sum() > 2000, f"{colour} is hardly to be seen"


@pytest.mark.parametrize(
    "points",
    [
        [point("alone", 64, 64, 0.5, 2.0)],
        [point("only wide", 64, 128, 0.5, 2.0)],
        [point("untimed", side, side, 0.5, math.nan) for side in (32, 64)],
        [point("certain", side, side, 1.0, 2.0) for side in (32, 64)],
        [point(f"model {m} with a name far too long for it", s, s, 0.5 + m / 50, 1.5**m * s / 50, 9)
         for m in range(8) for s in range(32, 513, 32)],
    ],
)  # fmt: skip
def test_the_picture_of_odd_curves(points: list[SizeResult]) -> None:
    with Image.open(io.BytesIO(png(points, "", dark=True))) as image:
        assert image.size == (2400, 940)
    with Image.open(io.BytesIO(png(points, sheet=TALL))) as image:
        assert image.size == (1080, 1680)
        assert len(image.getcolors(1 << 20) or []) > 50


def test_nothing_to_draw() -> None:
    with pytest.raises(UserError, match="the curve is empty"):
        png([])


@given(st.lists(st.floats(0, 100), max_size=8), st.floats(1, 20))
def test_names_are_spread_in_their_order(heights: list[float], gap: float) -> None:
    placed = spread(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: placed[i])
    assert all(placed[b] - placed[a] >= gap - 1e-6 for a, b in pairwise(order))
    assert [heights[i] for i in order] == sorted(heights)
    assert sum(placed) == pytest.approx(sum(heights), abs=1e-6)
