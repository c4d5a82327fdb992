"""3-Augment, DINO's colours and RandAugment against the published rules, with Pillow as the oracle."""

from __future__ import annotations

import importlib
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import auto_augment as timm_auto
from torchvision.transforms.v2 import functional as F

from anyres.data.augment import augment, seeded
from anyres.data.augment_config import AugmentConfig
from anyres.data.color import grayscale, solarize
from anyres.data.geometry import whole
from anyres.data.randaugment import rand_augment
from anyres.flow import Size

RNG = np.random.default_rng(3)
PIXELS = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (9, 7, 3), np.uint8)).resize((60, 44), Image.Resampling.BICUBIC)
)
IMAGE = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1).contiguous()
WHOLE = {"crop_scale": (1.0, 1.0), "crop_ratio": (60 / 44, 60 / 44), "flip": 0.0}  # the view is the image itself


def pillow(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_grey_and_solarised_are_pillows_for_every_value() -> None:
    every = RNG.integers(0, 256, (128, 128, 3), np.uint8)
    every[:, 0] = np.arange(128)[:, None]
    every[:, 1] = 128 + np.arange(128)[:, None]
    image, tensor = Image.fromarray(every), torch.from_numpy(every.copy()).permute(2, 0, 1)
    assert torch.equal(grayscale(tensor), pillow(image.convert("L").convert("RGB")))
    assert torch.equal(solarize(tensor), pillow(ImageOps.solarize(image, threshold=128)))


def test_three_augment_does_exactly_one_of_three_each_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    radii: list[float] = []
    real = ImageFilter.GaussianBlur

    def seen(radius: float) -> ImageFilter.GaussianBlur:
        radii.append(radius)
        return real(radius)

    monkeypatch.setattr(ImageFilter, "GaussianBlur", seen)
    image = Image.fromarray(PIXELS)
    options = [pillow(image.convert("L").convert("RGB")), pillow(ImageOps.solarize(image, 128))]
    counts = [0, 0, 0]
    for i in range(600):
        before = len(radii)
        with seeded(0, 0, i, 0):
            view = augment(IMAGE, Size(44, 60), AugmentConfig(three_augment=True, **WHOLE))
        if len(radii) > before:
            options = [*options[:2], pillow(image.filter(real(radii[-1])))]
        (which,) = [n for n, option in enumerate(options) if torch.equal(option, view)]
        assert (which == 2) == (len(radii) > before)
        counts[which] += 1
    assert min(counts) > 150
    assert 0.1 <= min(radii) < 0.2
    assert 1.9 < max(radii) <= 2.0
    assert np.mean(radii) == pytest.approx(1.05, abs=0.15)


@pytest.mark.parametrize("size", [Size(24, 24), Size(50, 50), Size(24, 40), Size(3, 3), Size(1, 1)])
def test_a_simple_crop_is_a_window_of_the_covering_image_with_a_mirrored_border(size: Size) -> None:
    """SRC: for a square Resize(side) of the short side, then RandomCrop(side, padding 4, reflect)."""
    h, w = 44, 60
    tall = max(size.height, int(h * max(size.height / h, size.width / w)))
    wide = max(size.width, int(w * max(size.height / h, size.width / w)))
    if size.height == size.width > 1:
        resized = F.resize(IMAGE, [size.height], F.InterpolationMode.BICUBIC, antialias=True)
        assert tuple(resized.shape[1:]) == (tall, wide)
    elif size.height > 1:
        resized = F.resize(IMAGE, [tall, wide], F.InterpolationMode.BICUBIC, antialias=True)
    else:
        resized = IMAGE.float().mean((1, 2), keepdim=True).round().to(torch.uint8)
    around = min(4, size.height - 1)
    padded = np.pad(resized.numpy(), ((0, 0), (around, around), (around, around)), mode="reflect")
    windows = {
        padded[:, y : y + size.height, x : x + size.width].tobytes()
        for y in range(padded.shape[1] - size.height + 1)
        for x in range(padded.shape[2] - size.width + 1)
    }
    seen = set()
    for i in range(30):
        with seeded(0, 0, i, 0):
            view = augment(IMAGE, size, AugmentConfig(crop="simple", flip=0.0))
        assert view.shape == (3, *size)
        seen.add(view.numpy().tobytes())
    assert seen <= windows
    assert len(seen) > 8 or size.height == 1


@pytest.mark.parametrize("crop", ["simple", "padded"])
@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (5, 3_000), (1, 1)])
def test_a_line_does_not_fill_the_memory(crop: str, shape: tuple[int, int]) -> None:
    with seeded(0, 0, 0, 0):
        assert augment(torch.zeros(3, *shape, dtype=torch.uint8), Size(64, 48), AugmentConfig(crop=crop)).shape == (
            3,
            64,
            48,
        )


def test_probabilities_of_each_colour_step() -> None:
    """DINO's second global view: jitter 0.8, grey 0.2, blur 0.1, solarised 0.2 (DINO, appendix C), each by itself."""
    n = 500
    image = Image.fromarray(PIXELS)
    for name, p, done in (
        ("grayscale", 0.2, pillow(image.convert("L").convert("RGB"))),
        ("solarize", 0.2, pillow(ImageOps.solarize(image, 128))),
        ("blur", 0.1, None),
        ("jitter", 0.8, None),
    ):
        jitters = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1} if name == "jitter" else {}
        how = AugmentConfig(**WHOLE, **jitters, **{name: p})
        changed = 0
        for i in range(n):
            with seeded(0, 0, i, 0):
                view = augment(IMAGE, Size(44, 60), how)
            changed += not torch.equal(view, IMAGE)
            assert done is None or torch.equal(view, IMAGE) or torch.equal(view, done)
        assert abs(changed / n - p) < 4 * (p * (1 - p) / n) ** 0.5, name


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"three_augment": True}, ["three_augment", "jitter"]),
        ({"grayscale": 1.0, "blur": 1.0, "solarize": 1.0}, ["jitter", "grayscale", "blur", "solarize"]),
        ({"grayscale": 1.0, "solarize": 1.0, "jitter": 0.0}, ["grayscale", "solarize"]),
    ],
)
def test_the_order_of_the_steps(monkeypatch: pytest.MonkeyPatch, options: dict[str, object], order: list[str]) -> None:
    """DeiT III: one of three, then jitter. DINO: jitter, grayscale, blur, solarize."""
    module = importlib.import_module("anyres.data.augment")
    done: list[str] = []

    def recording(name: str) -> object:
        return lambda image: done.append(name) or image

    for name in ("three_augment", "grayscale", "blur", "solarize"):
        monkeypatch.setattr(module, name, recording(name))
    monkeypatch.setattr("torchvision.transforms.v2.ColorJitter", lambda *strengths: recording("jitter"))
    how = AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3, crop_scale=(0.123, 1.0), **options)
    for _, step in module.steps(Size(8, 8), how):
        step(whole(IMAGE))
    assert done == order


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"three_augment": True, "rand_augment": "rand-m9"}, "three_augment and rand_augment exclude each other"),
        ({"three_augment": True, "erasing": 0.25}, "three_augment goes without erasing"),
        ({"three_augment": True, "blur": 0.5}, "three_augment does grayscale, blur or solarize itself"),
        ({"grayscale": 1.5}, r"grayscale 1\.5 is a probability"),
        ({"jitter": -0.1}, r"jitter -0\.1 is a probability"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        AugmentConfig(**options)


# The argument of each of RandAugment's 15 operations at magnitude m; +- is a fair coin
TABLE = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": lambda m: {3 * m, -3 * m},
    "PosterizeIncreasing": lambda m: {4 - int(0.4 * m + 1e-9)},
    "SolarizeIncreasing": lambda m: {256 - int(25.6 * m + 1e-9)},
    "SolarizeAdd": lambda m: {int(11 * m + 1e-9)},
    **{f"{n}Increasing": lambda m: {1 + 0.09 * m, 1 - 0.09 * m} for n in ("Color", "Contrast", "Brightness")},
    "SharpnessIncreasing": lambda m: {1 + 0.09 * m, 1 - 0.09 * m},
    "ShearX": lambda m: {0.03 * m, -0.03 * m},
    "ShearY": lambda m: {0.03 * m, -0.03 * m},
    "TranslateXRel": lambda m: {0.045 * m, -0.045 * m},
    "TranslateYRel": lambda m: {0.045 * m, -0.045 * m},
}


def test_timms_randaugment_is_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """rand-m9-mstd0.5-inc1: 2 of 15 operations with replacement, each with p 0.5, magnitude N(9, 0.5) in 0..10."""
    made: list[timm_auto.RandAugment] = []
    real = timm_auto.rand_augment_transform

    def seen(*given: object) -> timm_auto.RandAugment:
        made.append(real(*given))
        return made[-1]

    monkeypatch.setattr(timm_auto, "rand_augment_transform", seen)
    rand_augment("rand-m9-mstd0.5-inc1", Size(224, 224), "bicubic")
    (built,) = made
    assert sorted(op.name for op in built.ops) == sorted(TABLE)
    assert (built.num_layers, built.choice_weights) == (2, None)
    for op in built.ops:
        assert (op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) == (0.5, 9, 0.5, None)
        assert op.kwargs == {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}
        argument = TABLE[op.name]
        if argument is None:
            assert op.level_fn is None
            continue
        for m in (0, 0.7, 3, 5, 8.6, 9, 9.5, 10):
            got = {round(float(op.level_fn(m, op.hparams)[0]), 9) for _ in range(24)}
            assert got == {round(float(v), 9) for v in argument(m)}, (op.name, m)


def test_timms_randaugment_draws_magnitudes_around_nine_up_to_ten() -> None:
    """Of an operation with a known argument: rotations of a picture by +-3 m degrees, in half of the calls."""
    transform = timm_auto.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    rotate = next(op for op in transform.ops if op.name == "Rotate")
    degrees: list[float] = []
    rotate.aug_fn = lambda image, angle, **_: degrees.append(angle) or image
    random.seed(1)
    image = Image.fromarray(PIXELS)
    for _ in range(2000):
        rotate(image)
    assert 880 < len(degrees) < 1120
    magnitudes = np.abs(degrees) / 3
    assert magnitudes.max() == 10.0
    assert magnitudes.mean() == pytest.approx(9, abs=0.05)
    assert magnitudes.std() == pytest.approx(0.49, abs=0.04)
    assert 0.45 < np.mean(np.array(degrees) > 0) < 0.55


def test_solarise_add_touches_dark_pixels_only_and_clips() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    done = np.asarray(timm_auto.solarize_add(Image.fromarray(ramp), 99))[0, :, 0].astype(int)
    assert done.tolist() == [min(255, v + 99) if v < 128 else v for v in range(256)]
