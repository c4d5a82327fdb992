"""Batches from a position: step s of a run is a function of (seed, s), whatever the workers, ranks or earlier steps.

An epoch is a permutation drawn from (seed, epoch); sample i of it is augmented from (seed, epoch, i).
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anyres.config import UserError, config
from anyres.data.augment import AugmentConfig, key
from anyres.data.decode import Decoded, Unreadable
from anyres.data.views import ViewsConfig, eval_view, make_views
from anyres.flow import Batch, Size

_IN_A_ROW = 64  # so many unreadable images one after another end the run


@config
class LoaderConfig:
    """``batch_size``: of all ranks together. ``workers``: processes per rank (None: chosen). ``cache_gib``: memory for
    decoded images. ``max_unreadable``: share of the images that may be unreadable before the run ends."""

    batch_size: int = 64
    workers: int | None = None
    cache_gib: float = 4.0
    max_unreadable: float = 0.1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} must be 1 or more")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers {self.workers} must be 0 or more")


class Images(Protocol):
    """What the loader reads: DecodedImages, or anything like it. ``cached``: whether they lie in memory."""

    cached: bool

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Decoded:
        """Image i; raises Unreadable."""
        ...


@dataclass(frozen=True)
class Sample:
    """One image as views, before batching; ``views`` is empty when it cannot be read."""

    views: tuple[UInt8[Tensor, "3 _ _"], ...]
    target: int
    index: int
    notes: tuple[tuple[str, str], ...]


Key = tuple[int, int]  # (epoch, index); evaluation uses epoch 0
Collated = tuple[Sequence[Tensor], Tensor, Tensor, Sequence[tuple[str, str]]]  # lists, once pinned


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole global batches in n images, and one where they do not fill a batch."""
    return max(1, n // batch_size)


def train_batches(
    images: Images,
    targets: Int64[Tensor, " n"],
    augment: AugmentConfig,
    views: ViewsConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    max_unreadable: float = 0.1,
) -> Iterator[Batch]:
    """The batches of steps ``start_step`` to ``stop_step`` - 1: uint8 views (batch_size / world, 3, H_i, W_i).

    Rank r takes the r-th slice of each global batch. When the images are fewer than the batch, they come again with
    other draws. An unreadable image is replaced by the next readable one, and ``notes`` says so. Raises UserError.
    """
    if len(images) == 0 or len(images) != len(targets):
        raise UserError(f"{len(images)} images and {len(targets)} labels: there must be one label for each image")
    if batch_size < 1 or batch_size % world:
        raise UserError(f"batch_size {batch_size} cannot be shared by {world} processes: make it a multiple of {world}")
    sampler = _Steps(len(images), batch_size, seed, range(start_step, stop_step), rank, world)
    dataset = _TrainSet(images, targets.tolist(), augment, views, seed, max_unreadable)
    return _batches(_make_loader(dataset, sampler, workers, images.cached))


def eval_batches(
    images: Images,
    targets: Int64[Tensor, " n"],
    size: Size,
    *,
    crop: float = 0.875,
    warp: bool = False,
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
    dataset = _EvalSet(images, targets.tolist(), size, crop, warp)
    batches = _batches(_make_loader(dataset, chunks, workers, images.cached))
    return _without_empty(batches, must_read=world == 1)


class _Steps:
    """Batch sampler: the keys of one rank's slice of each global batch, from the first step asked for."""

    def __init__(self, n: int, batch_size: int, seed: int, steps: range, rank: int, world: int) -> None:
        self.n, self.batch_size, self.seed, self.steps, self.rank, self.world = n, batch_size, seed, steps, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch, share = steps_per_epoch(self.n, self.batch_size), self.batch_size // self.world
        for step in self.steps:
            epoch, position = divmod(step, per_epoch)
            order = _permutation(self.n, self.seed, epoch)
            first = position * self.batch_size + self.rank * share
            # an image that comes again in a small epoch has index i + n, i + 2n, ...: other draws, same image
            yield [(epoch, int(order[k % self.n]) + k // self.n * self.n) for k in range(first, first + share)]


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(key(seed, epoch)).permutation(n)


class _TrainSet(Dataset[Sample]):
    def __init__(
        self,
        images: Images,
        targets: list[int],
        augment: AugmentConfig,
        views: ViewsConfig,
        seed: int,
        max_unreadable: float,
    ) -> None:
        self.images, self.targets, self.augment, self.views, self.seed = images, targets, augment, views, seed
        self.allowed = max_unreadable * len(images)
        self.unreadable: set[int] = set()

    def __getitems__(self, keys: list[Key]) -> list[Sample] | UserError:
        with _one_thread():
            try:
                return [self._sample(*key) for key in keys]
            except UserError as error:  # as a value: a worker's exception would arrive as a page of traceback
                return error

    def _sample(self, epoch: int, index: int) -> Sample:
        decoded, shown, notes = self._read(index % len(self.images))
        views = make_views(decoded.image, self.augment, self.views, self.seed, epoch, index)
        return Sample(views, self.targets[shown], shown, notes)

    def _read(self, first: int) -> tuple[Decoded, int, tuple[tuple[str, str], ...]]:
        """The image, or the next readable one after it; its position; notes on both."""
        n = len(self.images)
        failed: list[Unreadable] = []
        for i in range(first, first + min(n, _IN_A_ROW)):
            try:
                decoded = self.images[i % n]
            except Unreadable as error:
                failed.append(error)
                self.unreadable.add(i % n)
                if len(self.unreadable) > self.allowed:
                    raise UserError(_too_many(len(self.unreadable), n, error)) from error
                continue
            notes = [(e.name, f"unreadable ({e.reason}): {decoded.name} takes its place") for e in failed]
            return decoded, i % n, (*notes, *_note(decoded))
        raise UserError(_too_many(len(failed), n, failed[0]))


def _too_many(count: int, n: int, first: Unreadable) -> str:
    return f"{count} or more of {n} images are unreadable, as {first}: repair or remove them, or raise max_unreadable"


def _note(decoded: Decoded) -> tuple[tuple[str, str], ...]:
    return ((decoded.name, decoded.note),) if decoded.note else ()


class _EvalSet(Dataset[Sample]):
    def __init__(self, images: Images, targets: list[int], size: Size, crop: float, warp: bool) -> None:
        self.images, self.targets, self.size, self.crop, self.warp = images, targets, size, crop, warp

    def __getitems__(self, keys: list[Key]) -> list[Sample] | UserError:
        with _one_thread():
            try:
                return [self._sample(i) for _, i in keys]
            except UserError as error:
                return error

    def _sample(self, i: int) -> Sample:
        try:
            decoded = self.images[i]
        except Unreadable as error:
            return Sample((), -1, i, ((error.name, f"unreadable ({error.reason}): left out"),))
        return Sample((eval_view(decoded.image, self.size, self.crop, self.warp),), self.targets[i], i, _note(decoded))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread, as DataLoader's workers have: sums come out bit-equal, and small pictures gain nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _collate(samples: list[Sample] | UserError) -> Collated | UserError:
    if isinstance(samples, UserError):
        return samples
    read = [s for s in samples if s.views]
    views = tuple(torch.stack(same) for same in zip(*(s.views for s in read), strict=True))  # (b, 3, H_i, W_i) each
    target = torch.tensor([s.target for s in read], dtype=torch.int64)
    index = torch.tensor([s.index for s in read], dtype=torch.int64)
    return views, target, index, tuple(note for s in samples for note in s.notes)


def _make_loader(
    dataset: Dataset[Sample], sampler: _Steps | list[list[Key]], workers: int | None, cached: bool
) -> DataLoader[Sample]:
    if workers is None:
        workers = _choose_workers(cached)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers and _can_fork() else None,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),  # so that the global one is left alone
    )


def _choose_workers(cached: bool) -> int:
    """None where the images lie in memory and the model runs on these processors too; else up to 8."""
    if not _can_fork() or (cached and not torch.cuda.is_available()):
        return 0
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus - 1, 8)


def _can_fork() -> bool:
    """Workers share the decoded images' memory only when they are forked."""
    return "fork" in multiprocessing.get_all_start_methods()


def _batches(loader: DataLoader[Sample]) -> Iterator[Batch]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12, fork
        collated = iter(loader)
    for item in collated:
        if isinstance(item, UserError):
            raise item
        views, target, index, notes = item
        yield Batch(tuple(views), target, index, tuple((name, note) for name, note in notes))


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
