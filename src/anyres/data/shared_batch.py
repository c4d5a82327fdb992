"""How a batch travels from a worker process to the main one: views in memory that both have, the rest as plain bytes.

The memory is made once and used in turn. PyTorch's own way asks the system for new shared memory for every tensor,
whose pages are cleared, mapped twice and given back again; it takes them from /dev/shm, of which containers have
little, and a descriptor for each. Where either is short, its batches are dropped, and the main process waits for ever.
"""

from __future__ import annotations

import io
import itertools
import math
import mmap
import pickle
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from anyres.config import UserError


@dataclass(frozen=True)
class Slot:
    """Where a batch's views lie: in the ``number``-th part of a worker's memory in a buffer, one after another, in
    these shapes."""

    buffer: int
    worker: int
    number: int
    shapes: tuple[tuple[int, ...], ...]


class SharedBatchBuffer:
    """``slots`` places of ``capacity`` bytes for each of ``workers`` processes, which are forked after it is made."""

    def __init__(self, workers: int, slots: int, capacity: int) -> None:
        self.slots, self.number = slots, next(_NUMBERS)
        try:
            memory = mmap.mmap(-1, workers * slots * capacity)
        except (OSError, OverflowError, ValueError) as error:
            gib = workers * slots * capacity / 2**30
            raise UserError(
                f"no memory for the batches of {workers} loader processes ({gib:.3g} GiB): lower the batch size, the "
                "size of the views, or data.workers"
            ) from error
        self.memory = torch.frombuffer(memory, dtype=torch.uint8).view(workers, slots, capacity)
        _BUFFERS[self.number] = self

    def put(self, worker: int, turn: int, views: Sequence[Sequence[UInt8[Tensor, "c _ _"]]]) -> Slot:
        """Each view's images (c, H_i, W_i) stacked in the worker's slot of that turn; overwrites what lay there."""
        shapes = tuple((len(images), *images[0].shape) for images in views)
        for images, room in zip(views, self._rooms(worker, turn % self.slots, shapes), strict=True):
            torch.stack(list(images), out=room)
        return Slot(self.number, worker, turn % self.slots, shapes)

    def get(self, slot: Slot) -> tuple[UInt8[Tensor, "b c _ _"], ...]:
        """The views where they lie: theirs until the worker's turn comes round."""
        return self._rooms(slot.worker, slot.number, slot.shapes)

    def _rooms(self, worker: int, slot: int, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        sizes = [math.prod(shape) for shape in shapes]
        rooms = torch.split(self.memory[worker, slot, : sum(sizes)], sizes)
        return tuple(room.view(shape) for room, shape in zip(rooms, shapes, strict=True))


_NUMBERS = itertools.count()
_BUFFERS: weakref.WeakValueDictionary[int, SharedBatchBuffer] = weakref.WeakValueDictionary()
"""Of this process: a slot names the one it lies in."""


def views_in(slot: Slot) -> tuple[UInt8[Tensor, "b c _ _"], ...]:
    """The views of a slot of this process's buffers."""
    return _BUFFERS[slot.buffer].get(slot)


class _Pickler(pickle.Pickler):
    """Tensors as NumPy's arrays: ForkingPickler would send each through shared memory and a descriptor."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.dtype in _PLAIN and value.device.type == "cpu":
            return torch.from_numpy, (value.detach().numpy(),)
        return NotImplemented


_PLAIN = frozenset((torch.uint8, torch.bool, torch.int32, torch.int64, torch.float32, torch.float64))


def pack(value: object) -> bytes:
    """Anything picklable as bytes, which need no shared memory. Only for processes of one run: see ``unpack``."""
    written = io.BytesIO()
    _Pickler(written, protocol=5).dump(value)
    return written.getvalue()


def unpack(content: bytes) -> Any:
    """What a worker process of this run has packed."""
    return pickle.loads(content)
