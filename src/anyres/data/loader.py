"""Batches from a position: step s of a run is a function of (seed, s), whatever the workers, ranks or earlier steps.

An epoch is a permutation drawn from (seed, epoch); sample i of it is augmented from (seed, epoch, i). Where classes are
balanced it is a draw from (seed, epoch) too (``anyres.data.balance``).

Repeated augmentation (DeiT's sampler, as published runs of DeiT, DeiT III, CaiT, ResMLP and ResFormer had it): with
``repeats`` R each image of the permutation comes R times in a row with other draws, and rank r of W takes every W-th
sample, beginning with its r-th, so that from W = R on the copies lie on different ranks. An epoch keeps the data set's
own length, so it sees about n / R different images. Where ours deviates: the permutation is drawn from (seed, epoch),
not from the epoch alone; the length is rounded down to the global batch, not to a multiple of 256 (which gave sets of
fewer than 256 images no sample at all), the same 1,281,024 of ImageNet for a batch of 1024; and one process does it
too.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anyres.config import UserError
from anyres.data.augment import mix_seed
from anyres.data.augment_config import AugmentConfig
from anyres.data.balance import balanced_order
from anyres.data.framing import Framing
from anyres.data.samples import Annotated, Collated, EvalSamples, Images, Key, Parcel, Sample, SeenKey, TrainSamples
from anyres.data.shared_batch import SharedBatchBuffer, Slot
from anyres.data.views_config import ViewsConfig
from anyres.data.workers import LOOKS_EVERY, ended, next_item, start
from anyres.flow import Batch, Record, Size, TargetReader
from anyres.ops.processors import processors

Order = np.ndarray[tuple[int], np.dtype[np.int64]]
PREFETCHED = 2
"""So many batches a worker makes ahead; its buffer has two more slots: for the batch that is used, and one to spare."""


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole global batches in n images, and one where they do not fill a batch."""
    return max(1, n // batch_size)


@dataclass(frozen=True)
class Steps:
    """Which images a run takes at which of its steps."""

    batch_size: int  # images of a step, over all processes
    seed: int  # of the permutations and of every draw
    start: int  # first step
    stop: int  # the step after the last
    repeats: int = 1  # each image of the permutation comes so many times in a row
    seen: Callable[[int], range] | None = None  # places of the views that a step sees; None: all
    classes: Sequence[int] | None = None  # of each image, where every class is to come equally often


@dataclass(frozen=True)
class Rank:
    """One of ``world`` processes that share the images."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are made; nothing of it changes what is in them."""

    workers: int | None = None  # processes; None: chosen by the images and the machine
    max_unreadable: float = 0.01  # share of the images that may be unreadable; ten always may, unless it is 0
    reuse: bool = False  # a batch's views may be overwritten once two more have been taken
    geometry: bool = False  # whether batches carry the geometry of each view


def train_batches(
    images: Images,
    records: Sequence[Record],
    reader: TargetReader,
    augment: AugmentConfig,
    views: ViewsConfig,
    steps: Steps,
    rank: Rank = Rank(),
    options: LoaderOptions = LoaderOptions(),
) -> Iterator[Batch]:
    """The batches of steps ``start`` to ``stop`` - 1: uint8 views (batch_size / world, c, H_i, W_i).

    ``records`` are the images' own, in their order; ``reader`` reads targets from them. Rank r takes the r-th slice of
    each global batch; with ``repeats`` every W-th sample of it, from its r-th on. When the images are fewer than the
    batch, they come again with other draws. An unreadable image is replaced by the next readable one, and ``notes``
    says so. Views that a step does not see stay black. Raises UserError, among others when more images than
    ``max_unreadable`` cannot be read.
    """
    import torchvision.transforms.v2  # noqa: F401  # before processes are forked: each would import it for itself

    _check_count(images, records)
    batch_size, world = steps.batch_size, rank.world
    if batch_size < 1 or batch_size % world:
        raise UserError(f"batch_size {batch_size} cannot be shared by {world} processes: make it a multiple of {world}")
    if steps.repeats < 1:
        raise UserError(
            f"repeats is {steps.repeats}: each image comes once or more, as 3 times in repeated augmentation"
        )
    workers = choose_workers(images.cached) if options.workers is None else options.workers
    buffer = _buffer(workers, batch_size // world, images.channels, views.parsed)
    dataset = TrainSamples(
        images,
        Annotated(records, reader),
        augment,
        views,
        steps.seed,
        max_unreadable=options.max_unreadable,
        geometry=options.geometry,
        buffer=buffer,
    )
    return _batches(_make_loader(dataset, _StepKeys(len(images), steps, rank), workers), buffer, options.reuse)


def eval_batches(
    images: Images,
    records: Sequence[Record],
    reader: TargetReader,
    size: Size,
    *,
    framing: Framing = Framing(),
    batch_size: int = 64,
    rank: Rank = Rank(),
    options: LoaderOptions = LoaderOptions(),
) -> Iterator[Batch]:
    """Every readable image once over all ranks, in order, as one uint8 view (b, c, H, W); notes name the others.

    Rank r sees images r, r + world, ... Raises UserError when nothing can be read.
    """
    _check_count(images, records)
    mine = [(0, i) for i in range(rank.rank, len(images), rank.world)]
    chunks = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    workers = choose_workers(images.cached) if options.workers is None else options.workers
    buffer = _buffer(min(workers, len(chunks)), min(batch_size, len(mine)), images.channels, (size,))
    annotated = Annotated(records, reader)
    dataset = EvalSamples(images, annotated, size, framing, geometry=options.geometry, buffer=buffer)
    batches = _batches(_make_loader(dataset, chunks, min(workers, len(chunks))), buffer, options.reuse)
    return _without_empty(batches, must_read=rank.world == 1)


def _buffer(workers: int, images: int, channels: int, sizes: Sequence[Size]) -> SharedBatchBuffer | None:
    """Memory for the views of so many images in each of the workers' slots; None where it cannot be shared."""
    if not workers or not _can_fork():
        return None
    room = sum(channels * size.height * size.width for size in sizes)
    return SharedBatchBuffer(workers, PREFETCHED + 2, images * room)


def _check_count(images: Images, records: Sequence[Record]) -> None:
    if len(images) == 0 or len(images) != len(records):
        raise UserError(f"{len(images)} images and {len(records)} records: there must be one record for each image")


class _StepKeys:
    """Batch sampler: the keys of one rank's slice of each global batch, from the first step asked for."""

    def __init__(self, n: int, steps: Steps, rank: Rank) -> None:
        self.n, self.steps, self.rank = n, steps, rank
        self.order = lru_cache(maxsize=2)(self._order)

    def __len__(self) -> int:
        return self.steps.stop - self.steps.start

    def __iter__(self) -> Iterator[list[Key] | list[SeenKey]]:
        how, (rank, world) = self.steps, (self.rank.rank, self.rank.world)
        per_epoch, share = steps_per_epoch(self.n, how.batch_size), how.batch_size // world
        for step in range(how.start, how.stop):
            epoch, position = divmod(step, per_epoch)
            order = self.order(epoch)
            batch = range(position * how.batch_size, (position + 1) * how.batch_size)
            first = rank * share
            mine = batch[first : first + share] if how.repeats == 1 else batch[rank::world]
            keys = [(epoch, self._index(order, k)) for k in mine]
            yield keys if how.seen is None else [(*key, how.seen(step)) for key in keys]

    def _order(self, epoch: int) -> Order:
        if self.steps.classes is not None:
            return balanced_order(self.steps.classes, self.steps.seed, epoch)
        return np.random.default_rng(mix_seed(self.steps.seed, epoch)).permutation(self.n)

    def _index(self, order: Order, k: int) -> int:
        """Sample k of an epoch: image i, or i + n, i + 2n, ... when it comes again: other draws, same image."""
        which, copy = divmod(k, self.steps.repeats)
        tour, place = divmod(which, self.n)
        again, image = divmod(int(order[place]), self.n)  # a balanced epoch has some images several times
        most = 1 if self.steps.classes is None else int(order.max()) // self.n + 1
        return image + ((tour * most + again) * self.steps.repeats + copy) * self.n


def _as_it_is(collated: Any) -> Any:
    return collated


def _make_loader(dataset: Dataset[Sample], sampler: _StepKeys | list[list[Key]], workers: int) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers and _can_fork() else None,
        prefetch_factor=PREFETCHED if workers else None,
        timeout=LOOKS_EVERY if workers else 0,
        generator=torch.Generator(),  # so that the global one is left alone
    )


def choose_workers(cached: bool) -> int:
    """None where the images lie in memory and the model runs on these processors too; else up to 8."""
    if not _can_fork() or (cached and not torch.cuda.is_available()):
        return 0
    return min(processors() - 1, 8)


def _can_fork() -> bool:
    """Workers share the decoded images' memory only when they are forked."""
    return "fork" in multiprocessing.get_all_start_methods()


def _batches(loader: DataLoader[Sample], buffer: SharedBatchBuffer | None, reuse: bool) -> Iterator[Batch]:
    collated, workers = start(loader)
    try:
        while (item := next_item(collated, workers)) is not None:
            if isinstance(item, UserError):
                raise item
            yield _batch(item, copy=buffer is not None and not reuse)
    finally:
        del collated  # ends the workers now, though a traceback may hold this frame
        ended(workers)


def _batch(item: Collated | Parcel, copy: bool) -> Batch:
    """The batch that a worker has made; its views stay in the shared memory unless they are to be copied."""
    made = item.open() if isinstance(item, Parcel) else item
    assert not isinstance(made.views, Slot)
    views = tuple(view.clone() for view in made.views) if copy and isinstance(item, Parcel) else tuple(made.views)
    notes = tuple((name, note) for name, note in made.notes)
    return Batch(views, made.targets, made.positions, notes, made.draw, tuple(map(tuple, made.geometry)))


def _without_empty(batches: Iterator[Batch], must_read: bool) -> Iterator[Batch]:
    """Join the notes of a batch in which nothing was readable to a neighbour's."""
    held: Batch | None = None
    notes: tuple[tuple[str, str], ...] = ()
    for batch in batches:
        if not batch.views:
            notes += batch.notes
            continue
        if held is not None:
            yield replace(held, notes=notes + held.notes)
            notes = ()
        held = batch
    if held is not None:
        yield replace(held, notes=held.notes + notes)
    elif must_read:
        raise UserError(f"no image can be read, as {notes[0][0]}: {notes[0][1]}")
