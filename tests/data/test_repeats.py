"""Repeated augmentation against its published rule (each image R times in a row, strided over the ranks)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.data.loading import load
from tests.data.test_loader import Noise, same

from anyres.config import UserError
from anyres.data.augment import mix_seed
from anyres.data.augment_config import AugmentConfig
from anyres.data.erasing import erase
from anyres.data.loader import Rank, Steps, _StepKeys, steps_per_epoch
from anyres.data.views_config import ViewsConfig
from anyres.flow import Batch, Labels

PLAIN = AugmentConfig()


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch's images."""
    return np.random.default_rng(mix_seed(seed, epoch)).permutation(n)


def published(order: list[int], world: int, repeats: int = 3) -> list[list[int]]:
    """What each rank sees in an epoch of the published sampler, for a given permutation, before batching."""
    n = len(order)
    copies = [i for i in order for _ in range(repeats)]
    padded = copies + copies[: math.ceil(len(copies) / world) * world - len(copies)]
    return [padded[rank::world][: (n // 256) * 256 // world] for rank in range(world)]


def ours(n: int, world: int, batch_size: int, epoch: int = 0, repeats: int = 3, seed: int = 7) -> list[list[int]]:
    """The images that each rank of ours sees in an epoch."""
    per_epoch = steps_per_epoch(n, batch_size)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    ranks = [
        _StepKeys(n, Steps(batch_size, seed, steps.start, steps.stop, repeats), Rank(rank, world))
        for rank in range(world)
    ]
    return [[i % n for keys in rank for _, i in keys] for rank in ranks]


@pytest.mark.parametrize(
    ("n", "world", "batch"), [(1000, 4, 256), (1300, 8, 256), (2047, 2, 64), (770, 1, 128), (256, 3, 3 * 85)]
)
def test_the_published_order_where_the_batch_fits(n: int, world: int, batch: int) -> None:
    order = [int(i) for i in permutation(n, 7, 1)]
    expected = published(order, world)
    got = ours(n, world, batch, epoch=1)
    assert [len(rank) for rank in got] == [n // batch * batch // world] * world
    assert all(a == b for x, y in zip(got, expected, strict=True) for a, b in zip(x, y, strict=False))
    if n // batch * batch == n // 256 * 256:
        assert got == expected


def test_imagenet_on_eight_devices() -> None:
    """1,281,167 images, 128 on each of 8: 1,251 steps, 160,128 samples a rank, about a third of the images."""
    n, world = 1_281_167, 8
    assert steps_per_epoch(n, 1024) * 128 == n // 256 * 256 // world == 160_128
    expected = published([int(i) for i in permutation(n, 7, 0)], world)
    for rank in (0, 3, 7):
        for step in (0, 1, 700, 1250):
            (keys,) = _StepKeys(n, Steps(1024, 7, step, step + 1, 3), Rank(rank, world))
            assert [i % n for _, i in keys] == expected[rank][step * 128 : (step + 1) * 128]
    assert len({i for rank in expected for i in rank}) == 1_281_024 // 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 5), st.integers(1, 40), st.integers(1, 4), st.integers(0, 3))
def test_any_set_batch_and_world(n: int, world: int, share: int, repeats: int, epoch: int) -> None:
    """An epoch has whole batches of the set's own length, of about n / R images, none twice with the same draws."""
    batch = world * share
    per_epoch = steps_per_epoch(n, batch)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    ranks = [
        list(_StepKeys(n, Steps(batch, 7, steps.start, steps.stop, repeats), Rank(rank, world)))
        for rank in range(world)
    ]
    whole = list(_StepKeys(n, Steps(batch, 7, steps.start, steps.stop, repeats), Rank()))
    samples = [key for keys in whole for key in keys]
    assert len(samples) == max(batch, n // batch * batch) > 0
    assert len(set(samples)) == len(samples)
    assert {e for e, _ in samples} == {epoch}
    assert len({i % n for _, i in samples}) == min(n, math.ceil(len(samples) / repeats))
    for step, keys in enumerate(whole):
        assert sorted(keys) == sorted(key for rank in ranks for key in rank[step])
    order = [i % n for _, i in samples]
    assert all(len(set(order[k : k + repeats])) == 1 for k in range(0, len(order), repeats))
    draws = [i // n for _, i in samples]
    assert draws[: repeats * n] == [k % repeats for k in range(min(len(draws), repeats * n))]


def train(start: int, stop: int, **more: object) -> list[Batch]:
    options = {"batch_size": 6, "seed": 5, "start_step": start, "stop_step": stop, "workers": 0, "repeats": 3, **more}
    targets = torch.arange(20) % 2
    jitter = AugmentConfig(brightness=0.4, rand_augment=None)
    return list(load(Noise(20), targets, jitter, ViewsConfig(sizes=("32", "20")), **options))


def test_the_copies_are_one_image_seen_differently_whatever_the_workers_start_and_world() -> None:
    whole = train(0, 7)
    assert [b.index.tolist()[::3] for b in whole] == [b.index.tolist()[1::3] for b in whole]
    assert [b.draw.tolist() for b in whole] == [[0, 1, 2, 0, 1, 2]] * 7
    for batch in whole:
        assert len({view.numpy().tobytes() for view in batch.views[0]}) == 6
    assert same(train(0, 7, workers=2), whole)
    assert same(train(4, 7), whole[4:])
    ranks = [train(0, 7, rank=rank, world=3) for rank in range(3)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert all(len(part.index) == 2 for part in parts)
        for view in range(2):
            woven = torch.stack([part.views[view] for part in parts], 1).flatten(0, 1)
            assert torch.equal(woven, batch.views[view])
    with pytest.raises(UserError, match="repeats is 0: each image comes once or more"):
        train(0, 1, repeats=0)


def test_the_copies_are_erased_differently() -> None:
    n = 24
    views = (torch.full((n, 3, 40, 40), 9.0),)
    index, draw = torch.arange(n) // 3, torch.arange(n) % 3
    done = erase(Batch(views, Labels(index), index, draw=draw), 1.0, 0, 0)
    assert len({view.numpy().tobytes() for view in done.views[0]}) == n
    first = erase(Batch((torch.full((1, 3, 40, 40), 9.0),), Labels(index[3:4]), index[3:4]), 1.0, 0, 0)
    assert torch.equal(first.views[0][0], done.views[0][3])  # the first copy has the draws of an image that comes once


def test_off_is_each_image_once_in_slices() -> None:
    order = np.asarray(permutation(20, 7, 0))
    keys = list(_StepKeys(20, Steps(6, 7, 0, 3), Rank(1, 2)))
    assert [[i for _, i in step] for step in keys] == [order[6 * s + 3 : 6 * s + 6].tolist() for s in range(3)]
