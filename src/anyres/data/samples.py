"""From keys (epoch, index) to the tensors of a batch: what a loader's worker does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from anyres.config import UserError
from anyres.data.augment import preserve_rng_state
from anyres.data.augment_config import AugmentConfig
from anyres.data.clips import Draw
from anyres.data.decode import Decoded, Unreadable
from anyres.data.framing import Framing
from anyres.data.geometry import View
from anyres.data.shared_batch import SharedBatchBuffer, Slot, pack, unpack, views_in
from anyres.data.views import draw_views
from anyres.data.views_config import ViewsConfig
from anyres.flow import Geometry, Record, Size, TargetReader, Targets

_IN_A_ROW = 64  # so many unreadable images one after another end the run
_ALWAYS = 10.0  # so many unreadable images never do, so that a few bad files do not stop a small folder


@runtime_checkable
class Images(Protocol):
    """What the loader reads: DecodedImages, or anything like it. ``cached``: whether they lie in memory; ``channels``:
    of each of them."""

    cached: bool
    channels: int

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Decoded:
        """Image i as training sees it, perhaps smaller than its file; raises Unreadable."""
        ...

    def full(self, i: int) -> Decoded:
        """Image i with all the pixels of its file; raises Unreadable."""
        ...

    def drawn(self, i: int, draw: Draw) -> Decoded:
        """Image i for one sample of training: of a film, the clip that is drawn for it; raises Unreadable."""
        ...


@dataclass(frozen=True)
class Annotated:
    """The images' records, and what a task reads from them: the target of an image and of each of its views."""

    records: Sequence[Record]
    reader: TargetReader

    def views(self, position: int, geometry: Sequence[Geometry]) -> tuple[Any, ...]:
        """The targets of one image's views. Raises UserError for one that cannot be read."""
        target = self.reader.read(self.records[position])
        return tuple(self.reader.view(target, each) for each in geometry)


@dataclass(frozen=True)
class Sample:
    """One image as views, with a target for each, before batching; ``views`` is empty when it cannot be read."""

    views: tuple[View, ...]
    targets: tuple[Any, ...]
    index: int
    notes: tuple[tuple[str, str], ...]
    draw: int = 0


class Collated(NamedTuple):
    """A batch on its way from a worker process. Tuples become lists where DataLoader pins it, as it does targets that
    have a method ``pin_memory``."""

    views: Sequence[Tensor] | Slot
    targets: Targets
    positions: Tensor
    notes: Sequence[tuple[str, str]]
    draw: Tensor
    geometry: Sequence[Sequence[Geometry]] = ()


@dataclass(frozen=True)
class Parcel:
    """A ``Collated`` as a worker sends it: bytes, and perhaps a slot of the shared memory within them."""

    content: bytes

    def open(self) -> Collated:
        """Its views where they lie: see SharedBatchBuffer."""
        made: Collated = unpack(self.content)
        return made._replace(views=views_in(made.views)) if isinstance(made.views, Slot) else made

    def pin_memory(self) -> Collated:
        """In memory from which a GPU copies by itself; DataLoader's thread calls this."""
        made = self.open()
        assert not isinstance(made.views, Slot)
        pinned = made._replace(
            views=[view.pin_memory() for view in made.views],
            positions=made.positions.pin_memory(),
            draw=made.draw.pin_memory(),
        )
        return pinned._replace(targets=made.targets.pin_memory()) if isinstance(made.targets, Pinnable) else pinned


@runtime_checkable
class Pinnable(Protocol):
    """Targets that have tensors."""

    def pin_memory(self) -> Any: ...


class WorkerStack:
    """Stacks views in a buffer of shared memory, for a worker that has one, in turn."""

    def __init__(self, buffer: SharedBatchBuffer | None) -> None:
        self.buffer, self.turn = buffer, 0

    def __call__(self, views: list[list[Tensor]]) -> tuple[Tensor, ...] | Slot:
        worker = get_worker_info()
        if self.buffer is None or worker is None or not views:
            return stacked(views)
        self.turn += 1
        return self.buffer.put(worker.id, self.turn, views)


def sent(make: Callable[[], Collated]) -> Collated | Parcel | UserError:
    """A batch, from a worker as a parcel. A UserError is returned, not raised: from a worker it would arrive as a page;
    so is a shortage that the user can end."""
    try:
        made = make()
        return made if get_worker_info() is None else Parcel(pack(made))
    except UserError as error:
        return error
    except MemoryError:
        return UserError("a loader process has no memory left: lower data.workers, the batch size or the views' size")


Key = tuple[int, int]  # (epoch, index + n for each time that the image came before); evaluation uses epoch 0
SeenKey = tuple[int, int, range]  # a Key, and the places of the views that are seen


class TrainSamples(Dataset[Sample]):
    """Training batches by their keys."""

    def __init__(
        self,
        images: Images,
        annotated: Annotated,
        augment: AugmentConfig,
        views: ViewsConfig,
        seed: int,
        *,
        max_unreadable: float = 0.01,
        geometry: bool = False,
        buffer: SharedBatchBuffer | None = None,
    ) -> None:
        self.images, self.annotated, self.augment, self.views, self.seed = images, annotated, augment, views, seed
        self.allowed = tolerated(len(images), max_unreadable)
        self.unreadable: set[int] = set()
        self.geometry, self.stack = geometry, WorkerStack(buffer)

    def __getitems__(self, keys: list[Key] | list[SeenKey]) -> Collated | Parcel | UserError:
        with one_thread(), preserve_rng_state():
            return sent(lambda: self._batch(keys))

    def _batch(self, keys: list[Key] | list[SeenKey]) -> Collated:
        samples = [self._sample(*key) for key in keys]
        return collate(samples, self.annotated.reader, self.stack, self.geometry)

    def _sample(self, epoch: int, index: int, seen: range | None = None) -> Sample:
        draw, position = divmod(index, len(self.images))
        decoded, shown, notes = self._read(position, Draw(self.seed, epoch, index))
        views = draw_views(decoded.view, self.augment, self.views, self.seed, epoch, index, seen)
        targets = self.annotated.views(shown, [view.geometry for view in views])
        return Sample(views, targets, shown, notes, draw)

    def _read(self, first: int, draw: Draw) -> tuple[Decoded, int, tuple[tuple[str, str], ...]]:
        """The image, or the next readable one after it; its position; notes on both."""
        n = len(self.images)
        failed: list[Unreadable] = []
        for i in range(first, first + min(n, _IN_A_ROW)):
            try:
                decoded = self.images.drawn(i % n, draw)
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
    """Evaluation batches by their keys; what cannot be read is left out, with a note.

    An image that is kept smaller than its file is used only where the view needs no more pixels than it has: else the
    file is decoded in full.
    """

    def __init__(
        self,
        images: Images,
        annotated: Annotated,
        size: Size,
        framing: Framing = Framing(),
        *,
        geometry: bool = False,
        buffer: SharedBatchBuffer | None = None,
    ) -> None:
        self.images, self.annotated, self.size, self.framing = images, annotated, size, framing
        self.geometry, self.stack = geometry, WorkerStack(buffer)

    def __getitems__(self, keys: list[Key]) -> Collated | Parcel | UserError:
        with one_thread():
            return sent(lambda: self._batch(keys))

    def _batch(self, keys: list[Key]) -> Collated:
        samples = [self._sample(i) for _, i in keys]
        return collate(samples, self.annotated.reader, self.stack, self.geometry)

    def _sample(self, i: int) -> Sample:
        try:
            decoded = read_for(self.images, i, self.size, self.framing)
        except Unreadable as error:
            return Sample((), (), i, ((error.name, f"unreadable ({error.reason}): left out"),))
        view = self.framing.view(decoded.view, self.size)
        return Sample((view,), self.annotated.views(i, [view.geometry]), i, _note(decoded))


def read_for(images: Images, i: int, size: Size, framing: Framing = Framing()) -> Decoded:
    """Image i to be framed: as it is kept, unless that was made smaller than the view needs. Raises Unreadable."""
    kept = images[i]
    if kept.geometry is None or not framing.enlarges(kept.geometry.size, size):
        return kept
    return images.full(i)


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


def stacked(views: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """(b, c, H_i, W_i) each."""
    return tuple(torch.stack(view) for view in views)


def collate(
    samples: list[Sample],
    reader: TargetReader,
    stack: Callable[[list[list[Tensor]]], tuple[Tensor, ...] | Slot] = stacked,
    geometry: bool = False,
) -> Collated:
    """Samples -> batch; those that could not be read leave only their notes."""
    read = [s for s in samples if s.views]
    views = stack([[view.pixels for view in same] for same in zip(*(s.views for s in read), strict=True)])
    index = torch.tensor([s.index for s in read], dtype=torch.int64)
    draw = torch.tensor([s.draw for s in read], dtype=torch.int64)
    notes = tuple(note for s in samples for note in s.notes)
    moved = tuple(tuple(view.geometry for view in s.views) for s in read) if geometry else ()
    return Collated(views, reader.collate([s.targets for s in read]), index, notes, draw, moved)
