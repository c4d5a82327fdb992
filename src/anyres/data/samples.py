"""From keys (epoch, index) to the tensors of a batch: what a loader's worker does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from anyres.config import UserError
from anyres.data.augment import AugmentConfig, as_before
from anyres.data.decode import Decoded, Unreadable
from anyres.data.shared_batch import Placed, Ring
from anyres.data.views import ViewsConfig, draw_views, eval_view
from anyres.flow import Size

_IN_A_ROW = 64  # so many unreadable images one after another end the run
_ALWAYS = 10.0  # so many unreadable images never do, so that a few bad files do not stop a small folder


@runtime_checkable
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
    target: int | Bool[Tensor, " k"]
    index: int
    notes: tuple[tuple[str, str], ...]
    draw: int = 0


Targets = list[int] | Bool[Tensor, "n k"]
"""Of each image: its class index, or which classes it has."""
Key = tuple[int, int]  # (epoch, index + n for each time that the image came before); evaluation uses epoch 0
SeenKey = tuple[int, int, range]  # a Key, and the places of the views that are seen
Views = Sequence[Tensor] | Placed  # lists, once pinned
Collated = tuple[Views, Tensor, Tensor, Sequence[tuple[str, str]], Tensor]


class TrainSamples(Dataset[Sample]):
    """Training batches by their keys. A UserError is returned, not raised: from a worker it would arrive as a page."""

    def __init__(
        self,
        images: Images,
        targets: Targets,
        augment: AugmentConfig,
        views: ViewsConfig,
        seed: int,
        max_unreadable: float,
        ring: Ring | None = None,
    ) -> None:
        self.images, self.targets, self.augment, self.views, self.seed = images, targets, augment, views, seed
        self.allowed = tolerated(len(images), max_unreadable)
        self.unreadable: set[int] = set()
        self.ring, self.turn = ring, 0

    def __getitems__(self, keys: list[Key] | list[SeenKey]) -> Collated | UserError:
        with one_thread(), as_before():
            try:
                return collate([self._sample(*key) for key in keys], self._stack)
            except UserError as error:
                return error

    def _stack(self, views: list[list[Tensor]]) -> Views:
        """In the ring, for a worker that has one."""
        worker = get_worker_info()
        if self.ring is None or worker is None:
            return stacked(views)
        self.turn += 1
        return self.ring.put(worker.id, self.turn, views)

    def _sample(self, epoch: int, index: int, seen: range | None = None) -> Sample:
        draw, position = divmod(index, len(self.images))
        decoded, shown, notes = self._read(position)
        views = draw_views(decoded.image, self.augment, self.views, self.seed, epoch, index, seen)
        return Sample(views, self.targets[shown], shown, notes, draw)

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
                    raise UserError(too_many(len(self.unreadable), n, error)) from error
                continue
            notes = [(e.name, f"unreadable ({e.reason}): {decoded.name} takes its place") for e in failed]
            return decoded, i % n, (*notes, *_note(decoded))
        raise UserError(too_many(len(failed), n, failed[0]))


def tolerated(n: int, share: float) -> float:
    """How many of n images may be unreadable: the share of them, or ten if that is more; none where it is 0."""
    return max(_ALWAYS, share * n) if share else 0.0


def too_many(count: int, n: int, first: Unreadable) -> str:
    """The line that ends a run with ``count`` or more unreadable images."""
    mend = "repair or remove them, or raise data.max_unreadable" if count < n else "repair or replace them"
    return f"{count}{' or more' if count < n else ''} of {n} images are unreadable, as {first}: {mend}"


def _note(decoded: Decoded) -> tuple[tuple[str, str], ...]:
    return ((decoded.name, decoded.note),) if decoded.note else ()


class EvalSamples(Dataset[Sample]):
    """Evaluation batches by their keys; what cannot be read is left out, with a note."""

    def __init__(
        self, images: Images, targets: Targets, size: Size, crop: float, warp: bool, interpolation: str = "bicubic"
    ) -> None:
        self.images, self.targets, self.size = images, targets, size
        self.seen = crop, warp, interpolation

    def __getitems__(self, keys: list[Key]) -> Collated | UserError:
        with one_thread():
            try:
                return collate([self._sample(i) for _, i in keys])
            except UserError as error:
                return error

    def _sample(self, i: int) -> Sample:
        try:
            decoded = self.images[i]
        except Unreadable as error:
            return Sample((), -1, i, ((error.name, f"unreadable ({error.reason}): left out"),))
        return Sample((eval_view(decoded.image, self.size, *self.seen),), self.targets[i], i, _note(decoded))


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, as DataLoader's workers have: sums come out bit-equal, and small copies need not wait for a
    second thread (on a busy machine that wait took a hundred times as long as the copy)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stacked(views: list[list[Tensor]]) -> Views:
    """(b, 3, H_i, W_i) each; in a worker process default_collate writes into memory that the main process reads."""
    return tuple(map(default_collate, views))


def collate(samples: list[Sample], stack: Callable[[list[list[Tensor]]], Views] = stacked) -> Collated:
    """Samples -> batch; those that could not be read leave only their notes."""
    read = [s for s in samples if s.views]
    views = stack([list(same) for same in zip(*(s.views for s in read), strict=True)])
    target = _rows([s.target for s in read])
    index = torch.tensor([s.index for s in read], dtype=torch.int64)
    draw = torch.tensor([s.draw for s in read], dtype=torch.int64)
    return views, target, index, tuple(note for s in samples for note in s.notes), draw


def _rows(targets: list[int | Tensor]) -> Int64[Tensor, " b"] | Float32[Tensor, "b k"]:
    """Class indices, or rows of zeros and ones."""
    rows = [target for target in targets if isinstance(target, Tensor)]
    return torch.stack(rows).float() if rows else torch.tensor(targets, dtype=torch.int64)
