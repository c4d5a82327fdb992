"""A balanced epoch shows every class equally often, and is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tests.data.loading import load
from tests.data.test_loader import JITTER, VIEWS, Pictures, same

from anyres.data.balance import balanced_order
from anyres.flow import Batch

SKEWED = [0] * 20 + [1] * 3 + [3] * 1  # class 2 has none


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_class_comes_equally_often(epoch: int) -> None:
    order = balanced_order(SKEWED, 5, epoch)
    assert len(set(order.tolist())) == len(SKEWED), "an image that comes again has another number"
    assert Counter(SKEWED[i % 24] for i in order) == {0: 8, 1: 8, 3: 8}
    assert Counter(Counter(int(i) % 24 for i in order if SKEWED[i % 24] == 1).values()) == {3: 2, 2: 1}
    assert np.array_equal(order, balanced_order(SKEWED, 5, epoch))
    assert not np.array_equal(order, balanced_order(SKEWED, 5, epoch + 1))
    assert not np.array_equal(order, balanced_order(SKEWED, 6, epoch))


def test_a_rest_goes_to_other_classes_each_time_and_many_classes_to_few_images() -> None:
    counts = [Counter(SKEWED[1:][i % 23] for i in balanced_order(SKEWED[1:], 0, epoch)) for epoch in range(9)]
    assert {max(found.values()) - min(found.values()) for found in counts} == {1}
    assert len({min(found, key=found.__getitem__) for found in counts}) > 1
    assert sorted(balanced_order([7, 8, 9], 0, 0).tolist()) == [0, 1, 2]


def made(start: int, stop: int, batch_size: int, repeats: int, rank: int = 0, world: int = 1) -> list[Batch]:
    place = {"rank": rank, "world": world, "start_step": start, "stop_step": stop}
    how = {"batch_size": batch_size, "seed": 5, "workers": 0, "repeats": repeats, "classes": SKEWED}
    return list(load(Pictures(24), torch.tensor(SKEWED), JITTER, VIEWS, **place, **how))


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("batch_size", [6, 48])
def test_the_loader_draws_so_from_any_step_on_and_over_ranks(repeats: int, batch_size: int) -> None:
    """A batch larger than the set too: then images come again, with other draws."""
    epoch = max(1, 24 // batch_size)
    whole = made(0, epoch + 2, batch_size, repeats)
    assert same(whole[2:], made(2, epoch + 2, batch_size, repeats))
    drawn = [(int(i), int(d)) for batch in whole[:epoch] for i, d in zip(batch.index, batch.draw, strict=True)]
    assert len(set(drawn)) == len(drawn), "no draw comes twice in an epoch"
    if repeats == 1:
        each = 8 * epoch * batch_size // 24
        assert Counter(SKEWED[i] for i, _ in drawn) == {0: each, 1: each, 3: each}
    halves = [made(0, epoch + 2, batch_size, repeats, rank, 2) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert sorted(batch.index.tolist()) == sorted(torch.cat([part.index for part in parts]).tolist())
