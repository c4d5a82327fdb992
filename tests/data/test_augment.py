from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from anyres.data.augment import augment, mix_seed, seeded
from anyres.data.augment_config import AugmentConfig
from anyres.flow import Size

PLAIN = AugmentConfig()
IMAGE = torch.arange(3 * 50 * 70, dtype=torch.int64).mul(7).remainder(256).to(torch.uint8).view(3, 50, 70)
KINDS = {
    "crop and flip": PLAIN,
    "jitter": AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "randaugment": AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"),
    "padded": AugmentConfig(crop="padded"),
    "bilinear": AugmentConfig(interpolation="bilinear", rand_augment="rand-m5-n3", flip=0.0),
}


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_seeded_leaves_all_global_generators_untouched_even_on_error() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    with contextlib.suppress(KeyError), seeded(1, 2, 3, 4):
        draws()
        raise KeyError
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_seeded_draws_depend_on_each_number_alone() -> None:
    def within(*numbers: int) -> tuple[float, float, float]:
        with seeded(*numbers):
            return draws()

    base = (5, 6, 7, 8, 0)
    first = within(*base)
    random.seed(9)
    torch.rand(3)
    assert within(*base) == first
    others = {within(*(n + (i == j) for j, n in enumerate(base))) for i in range(5)}
    assert len(others | {first}) == 6


def test_keys_are_fixed_for_ever() -> None:
    assert mix_seed(0, 0, 0) == 1445694884619442965
    assert mix_seed(1, 2, 3, 4, 5) == 776076787286141139
    assert len({mix_seed(a, b) for a in range(50) for b in range(50)}) == 2500


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [Size(32, 32), Size(24, 40)])
def test_a_view_is_a_function_of_its_seed(kind: str, size: Size) -> None:
    def view(index: int) -> torch.Tensor:
        with seeded(0, 0, index, 0):
            return augment(IMAGE, size, KINDS[kind])

    views = [view(i) for i in range(8)]
    assert all(v.shape == (3, *size) and v.dtype == torch.uint8 and v.is_contiguous() for v in views)
    assert torch.equal(views[3], view(3))
    assert len({v.numpy().tobytes() for v in views}) > 4
    assert IMAGE[0, 0, :3].tolist() == [0, 7, 14]  # the source is not written to


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_and_long_images(kind: str, shape: tuple[int, int]) -> None:
    with seeded(0, 0, 0, 0):
        assert augment(torch.full((3, *shape), 9, dtype=torch.uint8), Size(16, 16), KINDS[kind]).shape == (3, 16, 16)


def test_crops_have_the_area_and_ratio_asked_for() -> None:
    """On a ramp the spread of values along an axis is the share of that axis which the crop kept."""
    ramp = torch.arange(200, dtype=torch.uint8).expand(200, 200)
    image = torch.stack([ramp, ramp.T, ramp])
    shares = []
    for i in range(200):
        with seeded(0, 0, i, 0):
            view = augment(image, Size(100, 100), replace(PLAIN, crop_scale=(0.25, 0.5))).float()
        shares.append(((view[0].max() - view[0].min()) / 200, (view[1].max() - view[1].min()) / 200))
    wide, tall = torch.tensor(shares).T
    assert ((wide * tall > 0.22) & (wide * tall < 0.53)).all()
    assert ((wide / tall > 0.72) & (wide / tall < 1.38)).all()
    assert (wide * tall).std() > 0.04


def test_flip_happens_in_its_share() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, :20] = 200
    flipped = 0
    for i in range(400):
        with seeded(0, 0, i, 0):
            view = augment(image, Size(8, 8), replace(PLAIN, flip=0.25, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)))
        flipped += int(view[0, 0, 0] < 100)
    assert 70 < flipped < 130


def test_padded_crops_of_pictures_that_fit_are_shifts() -> None:
    image = IMAGE[:, :32, :32].contiguous()
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    windows = {padded[:, y : y + 32, x : x + 32].numpy().tobytes() for y in range(9) for x in range(9)}
    for i in range(20):
        with seeded(0, 0, i, 0):
            assert augment(image, Size(32, 32), AugmentConfig(crop="padded", flip=0.0)).numpy().tobytes() in windows


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"brightness": 0.4, "rand_augment": "rand-m9"}, "exclude each other"),
        ({"rand_augment": "randm9"}, "not of the form"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"flip": 1.5}, "is a probability"),
        ({"hue": 0.7}, r"hue is at most 0\.5"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        AugmentConfig(**options)
