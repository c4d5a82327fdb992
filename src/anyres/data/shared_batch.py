"""Memory into which worker processes write their batches and from which the main process reads them.

It is made once and used in turn. PyTorch's own way asks the system for new shared memory for every batch, whose pages
are cleared, mapped twice and given back again; and it takes them from /dev/shm, of which containers have little.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where a batch's views lie: in the ``number``-th part of a worker's memory, one after another, in these shapes."""

    worker: int
    number: int
    shapes: tuple[tuple[int, ...], ...]


class SharedBatchBuffer:
    """``slots`` places of ``capacity`` bytes for each of ``workers`` processes, which are forked after it is made."""

    def __init__(self, workers: int, slots: int, capacity: int) -> None:
        self.slots = slots
        self.memory = torch.frombuffer(mmap.mmap(-1, workers * slots * capacity), dtype=torch.uint8)
        self.memory = self.memory.view(workers, slots, capacity)

    def put(self, worker: int, turn: int, views: Sequence[Sequence[UInt8[Tensor, "c _ _"]]]) -> Slot:
        """Each view's images (c, H_i, W_i) stacked in the worker's slot of that turn; overwrites what lay there."""
        shapes = tuple((len(images), *images[0].shape) for images in views)
        for images, room in zip(views, self._rooms(worker, turn % self.slots, shapes), strict=True):
            torch.stack(list(images), out=room)
        return Slot(worker, turn % self.slots, shapes)

    def get(self, slot: Slot) -> tuple[UInt8[Tensor, "b c _ _"], ...]:
        """The views where they lie: theirs until the worker's turn comes round."""
        return self._rooms(slot.worker, slot.number, slot.shapes)

    def _rooms(self, worker: int, slot: int, shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        sizes = [math.prod(shape) for shape in shapes]
        rooms = torch.split(self.memory[worker, slot, : sum(sizes)], sizes)
        return tuple(room.view(shape) for room, shape in zip(rooms, shapes, strict=True))
