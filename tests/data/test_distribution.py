"""Our views against timm's own transforms on Pillow's images: the same distribution of crops, colours and operations.

The two draw from different generators, so samples are compared, with fixed seeds: the benchmark of the loader
(benchmarks/loader.py) measures one against the other.
"""

from __future__ import annotations

import importlib
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment, create_transform

from anyres.data.augment_config import AugmentConfig
from anyres.data.views import make_views
from anyres.data.views_config import ViewsConfig

N = 400
SIZES = (40, 32, 24)
TEXT = "rand-m9-mstd0.5-inc1"


def photograph() -> np.ndarray:
    small = np.random.default_rng(5).integers(0, 256, (7, 9, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((125, 94), Image.Resampling.BICUBIC))


def of_timm(pixels: np.ndarray, text: str | None) -> list[list[np.ndarray]]:
    """N draws of each view, (3, H, W)."""
    image, made = Image.fromarray(pixels), []
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    for size in SIZES:
        transform = create_transform(
            size, is_training=True, interpolation="bicubic", auto_augment=text, color_jitter=None, use_prefetcher=True
        )
        made.append([np.asarray(transform(image)) for _ in range(N)])
    return made


def of_ours(pixels: np.ndarray, text: str | None) -> list[list[np.ndarray]]:
    image, how = torch.from_numpy(pixels).permute(2, 0, 1), AugmentConfig(rand_augment=text)
    draws = [make_views(image, how, ViewsConfig(sizes=SIZES), 0, 0, i) for i in range(N)]
    return [[view.numpy() for view in same] for same in zip(*draws, strict=True)]


def alike(a: list[float], b: list[float]) -> bool:
    return bool(stats.ks_2samp(a, b).pvalue > 0.005)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    real = auto_augment.ImageOps.posterize
    black = lambda image, bits: real(image, bits) if bits else Image.new("RGB", image.size)  # noqa: E731
    monkeypatch.setattr(auto_augment.ImageOps, "posterize", black)  # as before Pillow 13


def test_pixels_have_the_same_means_and_deviations() -> None:
    pixels = photograph()
    for theirs, ours in zip(of_timm(pixels, TEXT), of_ours(pixels, TEXT), strict=True):
        assert theirs[0].shape == ours[0].shape
        for statistic in (np.mean, np.std, np.min, np.median, np.max):
            assert alike([statistic(v) for v in theirs], [statistic(v) for v in ours]), statistic
        for channel in range(3):
            assert alike([v[channel].mean() for v in theirs], [v[channel].mean() for v in ours])
    plain, coloured = of_ours(pixels, None)[0], of_ours(pixels, TEXT)[0]  # and the test sees a difference
    assert not alike([v.std() for v in plain], [v.std() for v in coloured])


def test_crops_have_the_same_areas_ratios_and_places() -> None:
    """On a ramp to the right in red and down in green, the corners of a view say where it was cut."""
    ramp = np.zeros((96, 128, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(128) * 2, np.arange(96)[:, None] * 2
    for theirs, ours in zip(of_timm(ramp, None), of_ours(ramp, None), strict=True):
        boxes = []
        for views in (theirs, ours):
            wide = [float(np.ptp(v[0].astype(int))) for v in views]
            tall = [float(np.ptp(v[1].astype(int))) for v in views]
            area, ratio = np.multiply(wide, tall), np.divide(wide, tall)
            flipped = [float(v[0, 0, 0]) > float(v[0, 0, -1]) for v in views]
            boxes.append((area, ratio, [v[0].min() for v in views], [v[1].min() for v in views], flipped))
        for a, b in zip(*(box[:-1] for box in boxes), strict=True):
            assert alike(a, b)
        assert all(abs(np.mean(box[-1]) - 0.5) < 4 * 0.5 / N**0.5 for box in boxes)


def test_operations_come_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """0, 1 or 2 of a view with 1/4, 1/2, 1/4, each of the fifteen alike."""
    made: list[auto_augment.RandAugment] = []
    real = auto_augment.rand_augment_transform
    monkeypatch.setattr(auto_augment, "rand_augment_transform", lambda *given: made.append(real(*given)) or made[-1])
    module = importlib.import_module("anyres.data.augment")
    module.view_maker.cache_clear()
    image, how = torch.from_numpy(photograph()).permute(2, 0, 1), AugmentConfig(rand_augment=TEXT)
    views = ViewsConfig(sizes=(8,))
    make_views(image, how, views, 0, 0, 0)
    done: list[str] = []
    for op in made[0].ops:
        op.aug_fn = lambda pixels, *values, name=op.name, **options: done.append(name) or pixels
    each, names = Counter(), Counter()
    for i in range(3000):
        done.clear()
        make_views(image, how, views, 0, 0, i)
        each[len(done)] += 1
        names.update(done)
    module.view_maker.cache_clear()
    assert stats.chisquare([each[n] for n in range(3)], [750, 1500, 750]).pvalue > 0.005
    assert len(names) == 15
    assert stats.chisquare(list(names.values())).pvalue > 0.005
