"""Batches from a position: step s of a run is a function of (seed, s), whatever the workers, ranks or earlier steps.

An epoch is a permutation drawn from (seed, epoch); sample i of it is augmented from (seed, epoch, i).

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
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anyres.config import UserError
from anyres.data.augment import AugmentConfig, key
from anyres.data.samples import EvalSamples, Images, Key, Sample, SeenKey, Targets, TrainSamples
from anyres.data.shared_batch import Placed, Ring
from anyres.data.views import ViewsConfig
from anyres.flow import Batch, Size

PREFETCHED = 2
"""So many batches a worker makes ahead; its ring has two more places: one for the batch that is used, one to spare."""


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole global batches in n images, and one where they do not fill a batch."""
    return max(1, n // batch_size)


def train_batches(
    images: Images,
    targets: Int64[Tensor, " n"] | Bool[Tensor, "n k"],
    augment: AugmentConfig,
    views: ViewsConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    repeats: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    max_unreadable: float = 0.01,
    seen: Callable[[int], range] | None = None,
    reuse: bool = False,
) -> Iterator[Batch]:
    """The batches of steps ``start_step`` to ``stop_step`` - 1: uint8 views (batch_size / world, 3, H_i, W_i).

    Rank r takes the r-th slice of each global batch; with ``repeats`` every W-th sample of it, from its r-th on. When
    the images are fewer than the batch, they come again with other draws. An unreadable image is replaced by the next
    readable one, and ``notes`` says so. ``targets``: class indices; or of a multi-label set, which classes each image
    has, and then a batch's are float32 (b, k). Raises UserError, among others when more than ``max_unreadable`` (a
    share; ten images always may, unless it is 0) cannot be read. ``seen``: the places of the views that a step sees
    (None: all); the others stay black. ``reuse``: a batch's views may be overwritten once two more have been taken.
    """
    if len(images) == 0 or len(images) != len(targets):
        raise UserError(f"{len(images)} images and {len(targets)} labels: there must be one label for each image")
    if batch_size < 1 or batch_size % world:
        raise UserError(f"batch_size {batch_size} cannot be shared by {world} processes: make it a multiple of {world}")
    if repeats < 1:
        raise UserError(f"repeats is {repeats}: each image comes once or more, as 3 times in repeated augmentation")
    sampler = _Steps(len(images), batch_size, seed, range(start_step, stop_step), rank, world, repeats, seen)
    workers = choose_workers(images.cached) if workers is None else workers
    ring = None
    if reuse and workers and _can_fork() and not torch.cuda.is_available():  # there batches go on to pinned memory
        room = sum(3 * size.height * size.width for size in views.parsed)
        ring = Ring(workers, PREFETCHED + 2, batch_size // world * room)
    dataset = TrainSamples(images, _each(targets), augment, views, seed, max_unreadable, ring)
    return _batches(_make_loader(dataset, sampler, workers), ring)


def eval_batches(
    images: Images,
    targets: Int64[Tensor, " n"] | Bool[Tensor, "n k"],
    size: Size,
    *,
    crop: float = 0.875,
    warp: bool = False,
    interpolation: str = "bicubic",
    batch_size: int = 64,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Every readable image once over all ranks, in order, as one uint8 view (b, 3, H, W); notes name the others.

    Rank r sees images r, r + world, ... Raises UserError when nothing can be read.
    """
    if len(images) == 0 or len(images) != len(targets):
        raise UserError(f"{len(images)} images and {len(targets)} labels: there must be one label for each image")
    mine = [(0, i) for i in range(rank, len(images), world)]
    chunks = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    dataset = EvalSamples(images, _each(targets), size, crop, warp, interpolation)
    workers = choose_workers(images.cached) if workers is None else workers
    batches = _batches(_make_loader(dataset, chunks, workers))
    return _without_empty(batches, must_read=world == 1)


def _each(targets: Tensor) -> Targets:
    """Class indices as plain numbers; rows of classes stay in the memory that worker processes share."""
    return targets.tolist() if targets.ndim == 1 else targets


class _Steps:
    """Batch sampler: the keys of one rank's slice of each global batch, from the first step asked for."""

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        steps: range,
        rank: int,
        world: int,
        repeats: int = 1,
        seen: Callable[[int], range] | None = None,
    ) -> None:
        self.n, self.batch_size, self.seed, self.steps, self.rank, self.world = n, batch_size, seed, steps, rank, world
        self.repeats, self.seen = repeats, seen

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key] | list[SeenKey]]:
        per_epoch, share = steps_per_epoch(self.n, self.batch_size), self.batch_size // self.world
        for step in self.steps:
            epoch, position = divmod(step, per_epoch)
            order = _permutation(self.n, self.seed, epoch)
            batch = range(position * self.batch_size, (position + 1) * self.batch_size)
            first = self.rank * share
            mine = batch[first : first + share] if self.repeats == 1 else batch[self.rank :: self.world]
            keys = [(epoch, self._index(order, k)) for k in mine]
            yield keys if self.seen is None else [(*key, self.seen(step)) for key in keys]

    def _index(self, order: np.ndarray[tuple[int], np.dtype[np.int64]], k: int) -> int:
        """Sample k of an epoch: image i, or i + n, i + 2n, ... when it comes again: other draws, same image."""
        which, copy = divmod(k, self.repeats)
        tour, place = divmod(which, self.n)
        return int(order[place]) + (tour * self.repeats + copy) * self.n


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(key(seed, epoch)).permutation(n)


def _as_it_is(collated: Any) -> Any:
    return collated


def _make_loader(dataset: Dataset[Sample], sampler: _Steps | list[list[Key]], workers: int) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers and _can_fork() else None,
        prefetch_factor=PREFETCHED if workers else None,
        generator=torch.Generator(),  # so that the global one is left alone
    )


def choose_workers(cached: bool) -> int:
    """None where the images lie in memory and the model runs on these processors too; else up to 8."""
    if not _can_fork() or (cached and not torch.cuda.is_available()):
        return 0
    return min(processors() - 1, 8)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _can_fork() -> bool:
    """Workers share the decoded images' memory only when they are forked."""
    return "fork" in multiprocessing.get_all_start_methods()


def _batches(loader: DataLoader[Sample], ring: Ring | None = None) -> Iterator[Batch]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12, fork
        collated = iter(loader)
    try:
        for item in collated:
            if isinstance(item, UserError):
                raise item
            views, target, index, notes, draw = item
            views = ring.get(views) if ring is not None and isinstance(views, Placed) else tuple(views)
            yield Batch(views, target, index, tuple((name, note) for name, note in notes), draw)
    finally:
        del collated  # ends the workers now, though a traceback may hold this frame


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
