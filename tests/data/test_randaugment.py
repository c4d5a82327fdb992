"""Our operations of RandAugment against timm's, which are Pillow's."""

from __future__ import annotations

import importlib
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_auto

from anyres.data.augment import seeded
from anyres.data.augment_config import AugmentConfig
from anyres.data.randaugment import Drawn, rand_augment
from anyres.data.views import make_views
from anyres.data.views_config import ViewsConfig
from anyres.flow import Size

RNG = np.random.default_rng(3)
FILL = (124, 116, 104)


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC))


def operations(monkeypatch: pytest.MonkeyPatch, text: str) -> dict[str, tuple[object, object]]:
    """name -> (timm's, ours), each done at every call."""
    made: list[timm_auto.RandAugment] = []
    real = timm_auto.rand_augment_transform
    with monkeypatch.context() as patch:
        patch.setattr(timm_auto, "rand_augment_transform", lambda *given: made.append(real(*given)) or made[-1])
        rand_augment(text, Size(224, 224), "bicubic")
    theirs = real(text, {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC})
    for op in (*theirs.ops, *made[0].ops):
        op.prob = 1.0
    return {a.name: (a, b) for a, b in zip(theirs.ops, made[0].ops, strict=True)}


@pytest.mark.parametrize("text", ["rand-m9-mstd1-inc1", "rand-m5-mstd3"])
def test_every_operation_is_timms(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Bit for bit; what shifts rows or columns but for one value in a thousand, by one grey level."""
    real = timm_auto.ImageOps.posterize
    black = lambda image, bits: real(image, bits) if bits else Image.new("RGB", image.size)  # noqa: E731
    monkeypatch.setattr(timm_auto.ImageOps, "posterize", black)  # as before Pillow 13
    both = operations(monkeypatch, text)
    assert len(both) == 15
    for name, (theirs, ours) in both.items():
        wrong = total = 0
        for i, (h, w) in enumerate([(96, 96), (60, 83), (83, 60), (1, 40), (40, 1), (2, 3)] * 2):
            pixels = picture(h, w, i)
            before = pixels.copy()
            random.seed(i)
            expected = np.asarray(theirs(Image.fromarray(pixels))).astype(int)
            random.seed(i)
            error = np.abs(ours(Drawn(pixels)).pixels - expected)
            assert error.max() <= ("Shear" in name or "Translate" in name), name
            wrong, total = wrong + (error > 0).sum(), total + error.size
            assert np.array_equal(pixels, before)
        assert wrong <= total / 1000, name


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.45, 1.0, -1.5, 30.0])
def test_a_flat_picture_keeps_its_colour_and_bare_parts_have_the_fill(
    monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    """For every value of a byte and any shift, beyond the picture too: where Pillow's has it."""
    theirs, ours = operations(monkeypatch, "rand-m9-inc1")[name]
    for grey in range(256):
        flat = np.full((9, 12, 3), grey, np.uint8)
        expected = theirs.aug_fn(Image.fromarray(flat), value, **theirs.kwargs)
        assert np.array_equal(ours.aug_fn(Drawn(flat), value, **ours.kwargs).pixels, np.asarray(expected))


def test_magnitude_ten_makes_a_picture_black_and_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm then keeps 4 - int(0.4 m) = 0 bits, which Pillow 13 refuses."""
    _, ours = operations(monkeypatch, "rand-m9-mstd0.5-inc1")["PosterizeIncreasing"]
    ours.magnitude, ours.magnitude_std = 10, 0
    assert not ours(Drawn(picture(8, 8))).pixels.any()
    ours.magnitude = 9
    assert set(np.unique(ours(Drawn(picture(8, 8))).pixels)) <= {0, 128}
    ten = rand_augment("rand-m10-n4-inc1", Size(16, 16), "bicubic")
    for i in range(60):
        with seeded(0, 0, i, 0):
            assert ten(torch.from_numpy(picture(16, 16)).permute(2, 0, 1))[0].shape == (3, 16, 16)


def test_views_do_not_depend_on_how_the_memory_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(picture(90, 120)).permute(2, 0, 1)
    planes = rows.contiguous()
    assert rows.stride() != planes.stride()
    for how in (
        AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"),
        AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.5, grayscale=0.3),
        AugmentConfig(crop="simple", three_augment=True),
        AugmentConfig(crop="padded", interpolation="bilinear"),
    ):
        for i in range(12):
            made = [make_views(image, how, ViewsConfig(sizes=(48, "32x40")), 0, 0, i) for image in (rows, planes)]
            assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(*made, strict=True))


def test_nothing_draws_between_the_seed_and_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first view, for which timm is imported and operations are built, is the view that a later process makes."""
    module = importlib.import_module("anyres.data.augment")
    real = module.rand_augment
    monkeypatch.setattr(module, "rand_augment", lambda *given: (random.random(), real(*given))[1])
    image = torch.from_numpy(picture(90, 120)).permute(2, 0, 1)
    how = AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1", crop_scale=(0.321, 0.9))
    views = ViewsConfig(sizes=(48, 32))
    first, again = (make_views(image, how, views, 0, 0, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
