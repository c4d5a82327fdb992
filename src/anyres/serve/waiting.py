"""Requests that wait, in a bucket for each size; the earliest deadline goes first and takes others of its size along.

Pure: no clock, no thread, no torch. Nobody waits for a batch to fill: whoever is there when the engine is free goes.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any

from anyres.flow import Size
from anyres.serve.costs import Costs


@dataclass(eq=False)
class Waiter:
    """One image that waits for its turn."""

    size: Size
    due: float  # seconds of the clock at which it should be answered: its place in the queue
    deadline: float | None  # after which nobody wants the answer; None: never
    payload: Any = None
    gone: bool = False  # its client has left
    order: int = field(default=0, compare=False)


class Waiting:
    """The buckets. ``most``: images of a batch, a power of two."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._buckets: dict[Size, list[tuple[float, int, Waiter]]] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return sum(not waiter.gone for bucket in self._buckets.values() for *_, waiter in bucket)

    def put(self, waiter: Waiter) -> None:
        """Let it wait."""
        waiter.order = next(self._order)
        heapq.heappush(self._buckets.setdefault(waiter.size, []), (waiter.due, waiter.order, waiter))

    def work_ms(self, costs: Costs, due: float | None = None) -> float:
        """Predicted milliseconds of all that waits; with ``due``, of what goes before a request due then."""
        total = 0.0
        for size, bucket in self._buckets.items():
            count = sum(not waiter.gone and (due is None or when <= due) for when, _, waiter in bucket)
            total += costs.work_ms(size, count, self.most)
        return total

    def take(self, now: float, costs: Costs) -> tuple[list[Waiter], list[Waiter]]:
        """The next batch, and those whose deadline is past, which are no longer waiting; both may be empty.

        The batch has a power of two images, as engines are built for that, and so few that the first is answered in
        time where a smaller batch can do that.
        """
        late = self._drop(now)
        if not self._buckets:
            return [], late
        size = min(self._buckets, key=lambda each: self._buckets[each][0][:2])
        bucket = self._buckets[size]
        count = min(self.most, 1 << (len(bucket).bit_length() - 1))
        deadline = bucket[0][2].deadline
        if deadline is not None and now + costs.batch_ms(size, 1) / 1000 <= deadline:
            while count > 1 and now + costs.batch_ms(size, count) / 1000 > deadline:
                count //= 2
        batch = [heapq.heappop(bucket)[2] for _ in range(count)]
        if not bucket:
            del self._buckets[size]
        return batch, late

    def _drop(self, now: float) -> list[Waiter]:
        """Take out whose client has left and whose deadline is past; the latter are returned."""
        late: list[Waiter] = []
        for size in list(self._buckets):
            kept = []
            for entry in self._buckets[size]:
                waiter = entry[2]
                if waiter.gone:
                    continue
                if waiter.deadline is not None and waiter.deadline <= now:
                    late.append(waiter)
                else:
                    kept.append(entry)
            if len(kept) < len(self._buckets[size]):
                heapq.heapify(kept)
            if kept:
                self._buckets[size] = kept
            else:
                del self._buckets[size]
        return late
