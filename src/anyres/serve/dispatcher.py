"""The whole decision: whether a request is taken, at which size it is answered, and what runs next.

Pure: the time is an argument, so that tests run it by a clock of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyres.flow import Size
from anyres.serve.costs import Costs
from anyres.serve.options import Pace
from anyres.serve.sizing import Chosen, Load, Rung, choose
from anyres.serve.waiting import Waiter, Waiting


@dataclass(frozen=True)
class Wish:
    """What a request says about its size."""

    size: Size | None = None  # None: it is chosen
    deadline_ms: float | None = None  # from its arrival; None: none
    cascade: bool = False  # small first, larger where unsure


@dataclass(frozen=True)
class Refusal:
    """Not taken: the queue is full. ``retry_ms``: until it is predicted to have room."""

    retry_ms: float


class Dispatcher:
    """``rungs``: the sizes to choose from, cheapest first. ``stages``: the cascade's sizes; () for none.

    A request is asked in (``admit``) when it arrives, gets its size (``choose``) when its image has been read, waits
    (``put``), and is taken (``take``) in a batch, whose time is told (``done``). ``readers``: images that are read at a
    time; ``engines``: batches that are run at a time.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        costs: Costs,
        pace: Pace,
        stages: Sequence[Size] = (),
        readers: int = 1,
        engines: int = 1,
    ) -> None:
        self.rungs, self.costs, self.pace, self.stages = tuple(rungs), costs, pace, tuple(stages)
        self.waiting = Waiting(pace.batch)
        self.load = Load()
        self._readers, self._engines = readers, engines
        self._reading: set[int] = set()  # keys of images
        self._running: dict[int, tuple[float, float]] = {}  # by the first one's order: when it began, and will be done
        self._keys = 0

    def wait_ms(self, now: float, due: float | None = None) -> float:
        """Predicted milliseconds until a request that comes now is begun (one due then, where ``due`` is given)."""
        work = self.waiting.work_ms(self.costs, due)
        if work or len(self._running) >= self._engines:
            work += sum(max(until - now, 0.0) * 1000 for _, until in self._running.values())
        return self._behind(work)

    def backlog_ms(self) -> float:
        """Predicted milliseconds of what waits, without what runs."""
        return self._behind(self.waiting.work_ms(self.costs))

    def _behind(self, work: float) -> float:
        """Until so much work is done by all engines, and those images that are still read after it."""
        reading = len(self._reading) * self.costs.read_ms / self._readers
        after = len(self._reading) * self.costs.image_ms(self.rungs[0].size, 1)
        return max(reading, work / self._engines) + after / self._engines

    def admit(self, now: float, wish: Wish, images: int = 1) -> list[int] | Refusal:
        """Whether a request of so many images is taken; then a key for each, for ``choose`` or ``forget``.

        It is refused where it would wait longer than ``pace.queue_ms``, or than its deadline leaves.
        """
        size = self._first(wish)
        each_ms = self.costs.image_ms(size or self.rungs[0].size, self.pace.batch)
        for _ in range(images):
            self.load.came(now, each_ms if size else None)
        own = self.costs.work_ms(size or self.rungs[0].size, images, self.pace.batch)
        over = self.wait_ms(now) - self.pace.queue_ms
        if wish.deadline_ms is not None:
            idle = self.pace.margin * (images * self.costs.read_ms / self._readers + own)
            if idle <= wish.deadline_ms:  # else no empty queue would help: it is tried
                over = max(over, self.wait_ms(now, now + wish.deadline_ms / 1000) - (wish.deadline_ms - idle))
        if over > 0:
            return Refusal(over)
        keys = list(range(self._keys, self._keys + images))
        self._keys += images
        self._reading.update(keys)
        return keys

    def choose(self, now: float, key: int, arrived: float, wish: Wish) -> Chosen:
        """The size for a request whose image has been read."""
        self._reading.discard(key)
        if wish.size is not None:
            return Chosen(wish.size, "asked")
        if wish.cascade and self.stages:
            return Chosen(self.stages[0], "cascade")
        wait = self.wait_ms(now)
        patience = min(self.pace.queue_ms, wish.deadline_ms or math.inf)
        busy = self.pace.busy * max(1 - self.backlog_ms() / patience, 0.0)  # a backlog must shrink, too
        costs = [self.costs.image_ms(rung.size, self.pace.batch) for rung in self.rungs]
        by_load = self.load.rung(costs, self.load.room_ms(now, busy * self._engines))
        if wish.deadline_ms is None:
            return choose(self.rungs, by_load, lambda size: self._finish_ms(size, wait), None)
        due = arrived + wish.deadline_ms / 1000
        before = self.wait_ms(now, due)
        return choose(self.rungs, by_load, lambda size: self._finish_ms(size, before), 1000 * (due - now))

    def goes_on(self, now: float, stage: int, arrived: float, wish: Wish) -> bool:
        """Whether there is time for a cascade's further stage."""
        wait = self.wait_ms(now)
        if wish.deadline_ms is None:
            return wait <= self.pace.queue_ms
        return self._finish_ms(self.stages[stage], wait) <= wish.deadline_ms - 1000 * (now - arrived)

    def forget(self, key: int) -> None:
        """A request was taken and will not go on: its image cannot be read, or its client has left."""
        self._reading.discard(key)

    def put(self, size: Size, arrived: float, wish: Wish, payload: Any = None) -> Waiter:
        """Let an image wait for its turn; without a deadline it is due as if the queue's bound were one."""
        deadline = None if wish.deadline_ms is None else arrived + wish.deadline_ms / 1000
        due = deadline if deadline is not None else arrived + self.pace.queue_ms / 1000
        waiter = Waiter(size, due, deadline, payload)
        self.waiting.put(waiter)
        return waiter

    def take(self, now: float) -> tuple[list[Waiter], list[Waiter]]:
        """The next batch to run, and those that are too late; see ``Waiting.take``."""
        batch, late = self.waiting.take(now, self.costs)
        if batch:
            self._running[batch[0].order] = now, now + self.costs.batch_ms(batch[0].size, len(batch)) / 1000
        return batch, late

    def done(self, now: float, batch: Sequence[Waiter]) -> None:
        """A batch that was taken has been run."""
        began, _ = self._running.pop(batch[0].order)
        self.costs.learn(batch[0].size, len(batch), 1000 * (now - began))

    def _first(self, wish: Wish) -> Size | None:
        """The size that a request is sure to be answered at; None where it is ours to choose."""
        return wish.size or (self.stages[0] if wish.cascade and self.stages else None)

    def _finish_ms(self, size: Size, wait: float) -> float:
        return self.pace.margin * (wait + self.costs.batch_ms(size, 1))
