import csv
import io
import math
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
from anyres.evaluation.curve import COLUMNS, measure, pick, plot, read_csv, write_csv
from anyres.evaluation.plots.curve import png
from anyres.evaluation.plots.label_placement import spread
from anyres.evaluation.plots.theme import TALL
from anyres.flow import Batch, Labels, Point, Size

from .curves import TRAINED, curve, point

POINTS = st.lists(
    st.builds(
        point,
        model=st.sampled_from(["a", "b"]),
        height=st.integers(1, 512),
        width=st.integers(1, 512),
        top1=st.integers(0, 20).map(lambda k: k / 20),
        latency_ms=st.sampled_from([1.0, 2.0, 3.5, 8.0, math.nan]),
        n=st.just(20),
    ),
    min_size=1,
    max_size=12,
)
MIN_TOP1 = st.one_of(st.none(), st.integers(0, 20).map(lambda k: k / 20))
MAX_MS = st.one_of(st.none(), st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0]))


@given(POINTS, MIN_TOP1, MAX_MS)
def test_pick_keeps_every_bound_and_nothing_better_does(
    points: list[Point], min_top1: float | None, max_ms: float | None
) -> None:
    fit = [p for p in points if min_top1 is None or p.top1 >= min_top1]
    fit = [p for p in fit if max_ms is None or p.latency_ms <= max_ms]
    if not fit or (min_top1 is None and max_ms is None):
        with pytest.raises(UserError) as refusal:
            pick(points, min_top1, max_ms)
        assert "\n" not in str(refusal.value)
        return
    chosen = pick(points, min_top1, max_ms)
    assert any(chosen is p for p in fit)
    if min_top1 is None:
        assert chosen.top1 == max(p.top1 for p in fit)
        fit = [p for p in fit if p.top1 == chosen.top1]
    timed = [p for p in fit if not math.isnan(p.latency_ms)]
    if timed:
        assert chosen.latency_ms == min(p.latency_ms for p in timed)
        assert chosen.macs == min(p.macs for p in timed if p.latency_ms == chosen.latency_ms)


def test_pick_on_the_curve() -> None:
    points = [p for p in curve() if p.model == "any-size"]
    assert pick(points, min_top1=0.74).width == 64
    assert pick(points, min_top1=76.4 / 100).width == 96, "764 right of 1000 are 76.4 %"
    assert (pick(points, max_ms=7.1).height, pick(points, max_ms=7.1).width) == (96, 160)
    assert pick(points, max_ms=5.0).width == 96
    assert pick(points, min_top1=0.75, max_ms=6.0).width == 96


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"min_top1": 0.9}, "no size reaches top-1 90.0 %: the most accurate is size 96x160 of any-size (77.0 %, 7.1"),
        ({"max_ms": 2.0}, "no size runs within 2 ms: the fastest is size 32 of any-size (68.1 %, 3.1 ms)"),
        ({"min_top1": 0.76, "max_ms": 4.0}, "most accurate within it is size 64 of any-size (74.0 %, 3.6 ms); the f"),
        ({"min_top1": 0.76, "max_ms": 4.0}, "fastest that accurate is size 96 of any-size (76.4 %, 4.9 ms)"),
        ({"min_top1": 0.9, "max_ms": 1.0}, "no size reaches top-1 90.0 % and runs within 1 ms: the most accurate is"),
        ({}, "say what the size has to do"),
        ({"min_top1": 76.4}, "write 76.4 % as 0.764"),
    ],
)  # fmt: skip
def test_refusals_name_the_best_available(bounds: dict[str, float], words: str) -> None:
    with pytest.raises(UserError) as refusal:
        pick([p for p in curve() if p.model == "any-size"], **bounds)
    assert words in str(refusal.value)


def test_csv_survives_the_round_trip(tmp_path: Path) -> None:
    points = [replace(p, model='one, "two"\nthree', loss=1 / 3) for p in curve()]
    path = tmp_path / "new" / "curve.csv"
    write_csv(points, path)
    assert read_csv(path) == points
    header = next(csv.reader(path.read_text().splitlines()))
    assert header[:7] == ["model", "height", "width", "top1", "n", "latency_ms", "macs"]
    assert tuple(header) == COLUMNS
    assert [p.name for p in path.parent.iterdir()] == ["curve.csv"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("model,height\na,1\n", "lacks the column 'width'"),
     (",".join(COLUMNS) + "\na,x" + ",1" * 10 + "\n", "invalid literal"),
     (",".join(COLUMNS) + "\na,1\n", "is no curve")],
)  # fmt: skip
def test_a_broken_csv_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "curve.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        read_csv(tmp_path / "curve.csv")
    with pytest.raises(UserError, match="no curve at"):
        read_csv(tmp_path / "none.csv")


def test_measure_puts_it_all_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batch = Batch(views=(torch.randn(8, 3, 6, 9),), targets=Labels(torch.arange(8) % 6), index=torch.arange(8))
    measured = measure("tiny", model, Size(6, 9), [batch], torch.device("cpu"), budget_s=0.01, throughput_batch=3)
    point = measured.point
    assert (point.model, point.height, point.width, point.n) == ("tiny", 6, 9, 8)
    assert point.macs == 6 * 9 * 18
    assert point.top1 == measured.scores.top1
    assert point.top1_low <= point.top1 <= point.top1_high
    assert point.top5 >= point.top1
    assert point.latency_ms > 0
    assert point.images_per_s > 0
    with pytest.raises(ValueError, match="a batch of size 6x9 was given for the measurement at size 6"):
        measure("tiny", model, Size(6, 6), [batch], torch.device("cpu"))


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
def test_the_picture_of_odd_curves(points: list[Point]) -> None:
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
