from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.labels import targets
from tests.data.loading import evaluate, load
from torch import Tensor

from anyres.config import UserError
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.decode import Decoded, Unreadable
from anyres.data.framing import Framing
from anyres.data.loader import PREFETCHED, steps_per_epoch
from anyres.data.sources import open_source
from anyres.data.views_config import ViewsConfig
from anyres.flow import Batch, Size, seen_views

JITTER = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4)
VIEWS = ViewsConfig(sizes=("32", "20x24"))


class Pictures:
    """n pictures in memory, each filled with its own number; those in ``bad`` cannot be read."""

    cached = True
    channels = 3

    def __init__(self, n: int, bad: Sequence[int] = (), note: str | None = None) -> None:
        self.n, self.bad, self.note = n, set(bad), note

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Decoded:
        if i in self.bad:
            raise Unreadable(f"p{i}", "cut")
        return Decoded(torch.full((3, 12, 10), i % 256, dtype=torch.uint8), self.note, f"p{i}")

    def full(self, i: int) -> Decoded:
        return self[i]

    def drawn(self, i: int, draw: object) -> Decoded:
        return self[i]


def train(
    images: object, start: int, stop: int, batch: int = 6, augment: AugmentConfig = JITTER, **more: object
) -> list[Batch]:
    targets = torch.arange(len(images)) % 2
    options = {"batch_size": batch, "seed": 5, "start_step": start, "stop_step": stop, "workers": 0, **more}
    return list(load(images, targets, augment, VIEWS, **options))


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.index, y.index)
        and torch.equal(x.targets.of(0), y.targets.of(0))
        and x.notes == y.notes
        and all(torch.equal(s, t) for s, t in zip(x.views, y.views, strict=True))
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_that_a_step_does_not_see_are_not_made(images: DecodedImages, share: bool, workers: int) -> None:
    """Those that it sees are the same pixels."""
    views = ViewsConfig(sizes=("24", "16", "12"), share=share)
    options = {"batch_size": 6, "seed": 5, "start_step": 1, "stop_step": 6, "workers": workers}

    def made(**more: object) -> list[Batch]:
        return list(load(images, targets(images.source), JITTER, views, **options, **more))

    def seen(step: int) -> range:
        return seen_views(step, 3, 2)

    for step, every, some in zip(range(1, 6), made(), made(seen=seen), strict=True):
        assert torch.equal(every.index, some.index)
        for place, (a, b) in enumerate(zip(every.views, some.views, strict=True)):
            if place in seen(step) or (share and place == 0):  # the first is what the others are made of
                assert torch.equal(a, b)
            else:
                assert a.shape == b.shape
                assert not b.any()


@pytest.fixture
def images(folder: Path) -> DecodedImages:
    (folder / "cat" / "3.png").write_text("no image")
    return DecodedImages(open_source(str(folder), "trainval"), progress=False)


@pytest.mark.parametrize("kind", ["jitter", "randaugment"])
def test_batches_are_bit_equal_for_any_workers_start_and_world(images: DecodedImages, kind: str) -> None:
    augment = JITTER if kind == "jitter" else AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1")
    whole = train(images, 0, 8, augment=augment)
    assert [tuple(v.shape) for v in whole[0].views] == [(6, 3, 32, 32), (6, 3, 20, 24)]
    assert same(train(images, 0, 8, augment=augment, workers=2), whole)
    assert same(train(images, 5, 8, augment=augment), whole[5:])  # the middle of the second epoch
    assert same(train(images, 4, 8, augment=augment, workers=1), whole[4:])
    ranks = [train(images, 0, 8, augment=augment, rank=r, world=2) for r in range(2)]
    for one, first, second in zip(whole, *ranks, strict=True):
        for v in range(2):
            assert torch.equal(one.views[v], torch.cat([first.views[v], second.views[v]]))
        assert torch.equal(one.index, torch.cat([first.index, second.index]))
    assert any("unreadable" in told for batch in whole for _, told in batch.notes)


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_used_again_holds_a_batch_until_two_more_are_taken(images: DecodedImages, workers: int) -> None:
    options = {"batch_size": 6, "seed": 5, "start_step": 0, "stop_step": 30, "workers": workers}
    places = set()
    before: tuple[Tensor, ...] = ()
    held: tuple[Tensor, ...] = ()
    again = load(images, targets(images.source), JITTER, VIEWS, **options, reuse=True)
    for fresh, batch in zip(load(images, targets(images.source), JITTER, VIEWS, **options), again, strict=True):
        time.sleep(0.01)  # lets workers run ahead
        assert same([fresh], [batch])
        assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))
        held, before = batch.views, tuple(view.clone() for view in batch.views)
        places.add(batch.views[0].data_ptr())
    assert len(places) == workers * (PREFETCHED + 2)


def test_large_views_too_are_bit_equal_between_workers() -> None:
    """Sums over many pixels would differ in their last bits with other thread counts."""
    torch.set_num_threads(2)
    big = ViewsConfig(sizes=("288",))
    options = {"batch_size": 2, "seed": 1, "start_step": 0, "stop_step": 2}
    runs = []
    for workers in (0, 2):
        targets = torch.zeros(8, dtype=torch.int64)
        runs.append(list(load(Noise(8), targets, JITTER, big, workers=workers, **options)))
    assert same(*runs)


class Noise(Pictures):
    def __getitem__(self, i: int) -> Decoded:
        pixels = np.random.default_rng(i).integers(0, 256, (3, 300, 310), dtype=np.uint8)
        return Decoded(torch.from_numpy(pixels), None, f"p{i}")


def test_each_epoch_is_another_permutation_and_seeds_differ() -> None:
    batches = train(Pictures(20), 0, 8)
    assert steps_per_epoch(20, 6) == 3
    epochs = [torch.cat([b.index for b in batches[i : i + 3]]).tolist() for i in (0, 3)]
    assert all(len(set(epoch)) == 18 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert train(Pictures(20), 0, 1)[0].index.tolist() != train(Pictures(20), 0, 1, seed=6)[0].index.tolist()
    assert all((b.targets.of(0) == b.index % 2).all() for b in batches)


def test_fewer_images_than_a_batch_come_again_with_other_draws() -> None:
    assert steps_per_epoch(4, 10) == 1
    first, second = train(Pictures(4), 0, 2, batch=10)
    assert sorted(Counter(first.index.tolist()).values()) == [2, 2, 3, 3]
    assert first.index.tolist() != second.index.tolist()
    again = Noise(4)
    batch = train(again, 0, 1, batch=10)[0]
    twins = [i for i in range(10) if batch.index[i] == batch.index[0]]
    assert len({batch.views[0][i].numpy().tobytes() for i in twins}) == len(twins)


def test_global_generators_are_left_alone() -> None:
    # Python's own generator is left out: beartype draws from it under test
    states = np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002
    train(Pictures(8), 0, 2, workers=1)
    train(Pictures(8), 0, 2)
    list(evaluate(Pictures(8), torch.zeros(8, dtype=torch.int64), Size(8, 8)))
    assert np.random.get_state()[1].tolist() == states[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    assert torch.get_num_threads() == states[2]


def test_an_unreadable_image_is_replaced_by_the_next_and_told() -> None:
    plain = AugmentConfig(flip=0.0)
    for batch in train(Pictures(40, bad=(7, 39)), 0, 6, batch=20, augment=plain):
        assert not {7, 39} & set(batch.index.tolist())
        assert [int(v[0, 0, 0]) for v in batch.views[0]] == batch.index.tolist()
        assert (batch.targets.of(0) == batch.index % 2).all()
        for name, told in batch.notes:
            following = {"p7": "p8", "p39": "p0"}[name]
            assert told == f"unreadable (cut): {following} takes its place"
    notes = [n for b in train(Pictures(40, bad=(7, 39)), 0, 2, batch=20) for n in b.notes]
    assert sorted(name for name, _ in notes) == ["p39", "p7"]
    converted = train(Pictures(4, note="CMYK converted to RGB"), 0, 1, batch=2)[0]
    assert [told for _, told in converted.notes] == ["CMYK converted to RGB"] * 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("n", [1, 30, 500])
def test_too_many_unreadable_images_end_the_run_in_one_line(n: int, workers: int) -> None:
    line = rf"of {n} images are unreadable, as p\d+: cut: repair or (remove|replace) them"
    with pytest.raises(UserError, match=line) as caught:
        train(Pictures(n, bad=range(n)), 0, 9, workers=workers)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=line):
        train(Pictures(n, bad=range(n)), 0, 9, max_unreadable=1.0)


def test_ten_unreadable_images_are_allowed_unless_none_is() -> None:
    assert len(train(Pictures(12, bad=range(10)), 0, 4)) == 4
    with pytest.raises(UserError, match=r"11 or more of 12 .* or raise data\.max_unreadable"):
        train(Pictures(12, bad=range(11)), 0, 4)
    assert len(train(Pictures(12, bad=range(11)), 0, 4, max_unreadable=0.95)) == 4
    with pytest.raises(UserError, match="are unreadable"):
        train(Pictures(3, bad=[1]), 0, 4, max_unreadable=0.0)


def test_mistakes_are_found_at_the_call_not_at_the_first_batch() -> None:
    with pytest.raises(UserError, match="batch_size 6 cannot be shared by 4 processes: make it a multiple of 4"):
        train(Pictures(8), 0, 1, world=4)
    options = {"batch_size": 2, "seed": 0, "start_step": 0, "stop_step": 1}
    with pytest.raises(UserError, match="8 images and 7 records"):
        load(Pictures(8), torch.zeros(7, dtype=torch.int64), JITTER, VIEWS, **options)
    with pytest.raises(UserError, match="0 images and 0 records"):
        evaluate(Pictures(0), torch.zeros(0, dtype=torch.int64), Size(8, 8))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_readable_image_once(world: int, workers: int) -> None:
    bad = (0, 1, 2, 3, 9)
    seen: list[int] = []
    told: list[str] = []
    for rank in range(world):
        for batch in evaluate(
            Pictures(14, bad), torch.arange(14), Size(8, 6), batch_size=2, rank=rank, world=world, workers=workers
        ):
            assert batch.views[0].shape[1:] == (3, 8, 6)
            assert batch.targets.of(0).tolist() == batch.index.tolist() == batch.views[0][:, 0, 0, 0].tolist()
            seen += batch.index.tolist()
            told += [name for name, note in batch.notes if note == "unreadable (cut): left out"]
    assert sorted(seen) == sorted(set(range(14)) - set(bad))
    assert sorted(told) == sorted(f"p{i}" for i in bad)


def test_evaluation_of_nothing_readable() -> None:
    targets = torch.arange(3)
    with pytest.raises(UserError, match=r"no image can be read, as p0: unreadable \(cut\)"):
        list(evaluate(Pictures(3, range(3)), targets, Size(8, 8)))
    assert list(evaluate(Pictures(3, range(3)), targets, Size(8, 8), rank=1, world=2)) == []
    assert list(evaluate(Pictures(3), targets, Size(8, 8), rank=3, world=4)) == []
    with pytest.raises(UserError, match="crop"):
        list(evaluate(Pictures(3), targets, Size(8, 8), framing=Framing(crop=2.0), workers=1))


def test_abandoned_batches_end_their_workers(images: DecodedImages) -> None:
    import multiprocessing

    batches = load(
        images,
        torch.zeros(20, dtype=torch.int64),
        JITTER,
        VIEWS,
        batch_size=4,
        seed=0,
        start_step=0,
        stop_step=10**9,
        workers=2,
    )
    before = len(multiprocessing.active_children())
    next(batches)
    assert len(multiprocessing.active_children()) == before + 2
    batches.close()
    assert len(multiprocessing.active_children()) == before
