"""Runs what the dispatcher decides: images are read in threads, batches run in others, the loop only waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from anyres.flow import Size
from anyres.ops.processors import processors
from anyres.serve.dispatcher import Dispatcher, Refusal, Wish
from anyres.serve.errors import Refused, reading
from anyres.serve.metrics import Metrics
from anyres.serve.model import ServedModel
from anyres.serve.sizing import Reason

log = logging.getLogger(__name__)
T = TypeVar("T")
Source = bytes | Tensor
"""An encoded image, or its pixels, uint8 (c, h, w)."""


@dataclass(frozen=True)
class Outcome:
    """What came of one image."""

    probabilities: Tensor  # (k,)
    size: Size  # at which it was answered
    reason: Reason  # why at that
    looks: tuple[Size, ...]  # the sizes it was seen at, in order; of a cascade perhaps several
    read_ms: float  # decoding and resizing, without waiting for a thread
    queue_ms: float  # waiting for a batch
    compute_ms: float  # of the batches it was in


class _Turn(NamedTuple):
    """What a waiter waits with."""

    view: Tensor
    row: asyncio.Future[tuple[Tensor, float, float]]  # logits (k,), the clock when its batch began, its milliseconds


@dataclass
class _Spent:
    """Milliseconds of one image."""

    read: float = 0.0
    queue: float = 0.0
    compute: float = 0.0


class Scheduler:
    """Answers images while it is entered (``async with``). ``clock``: seconds."""

    def __init__(
        self,
        model: ServedModel,
        dispatcher: Dispatcher,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.dispatcher, self.metrics, self.clock = model, dispatcher, metrics, clock
        self._wake = asyncio.Event()
        self._decoding = asyncio.Semaphore()  # decoded images at a time: each may be large
        self._loops: list[asyncio.Task[None]] = []
        self._readers: ThreadPoolExecutor | None = None
        self._engine: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Scheduler:
        self._wake = asyncio.Event()  # of this loop
        self._decoding = asyncio.Semaphore(readers() + 1)
        engines = self.model.engines
        self._engine = ThreadPoolExecutor(engines, "engine", torch.set_num_threads, (1,))
        self._readers = ThreadPoolExecutor(readers(), "reader", torch.set_num_threads, (1,))
        self._loops = [asyncio.create_task(self._run()) for _ in range(engines)]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._readers is not None
        assert self._engine is not None
        for loop in self._loops:
            loop.cancel()
        for loop in self._loops:
            with suppress(asyncio.CancelledError):
                await loop
        self._readers.shutdown(cancel_futures=True)
        self._engine.shutdown(cancel_futures=True)

    async def answer(self, sources: Sequence[Source], wish: Wish, arrived: float) -> list[Outcome]:
        """What the model says of each image. ``arrived``: the clock when the request came. Raises Refused."""
        now = self.clock()
        if wish.deadline_ms is not None and 1000 * (now - arrived) >= wish.deadline_ms:
            raise self._late(wish.size)
        keys = self.dispatcher.admit(now, wish, len(sources))
        if isinstance(keys, Refusal):
            line = "more is asked than this machine answers: come again, or ask for a smaller size"
            raise Refused(503, "queue", line, retry_ms=keys.retry_ms)
        if len(sources) == 1:
            return [await self._one(sources[0], keys[0], wish, arrived)]
        tasks = [
            asyncio.create_task(self._one(source, key, wish, arrived))
            for source, key in zip(sources, keys, strict=True)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def read(self, call: Callable[[], T]) -> T:
        """What ``call`` gives, called in one of the threads that read images."""
        return await self._in(self._readers, call)

    async def _one(self, source: Source, key: int, wish: Wish, arrived: float) -> Outcome:
        spent = _Spent()
        try:
            async with self._decoding:
                image = await self._decoded(source, spent)
                size, reason = self.dispatcher.choose(self.clock(), key, arrived, wish)
                sizes = self.model.cuts.sizes if reason == "cascade" else (size,)
                views = [await self._timed(partial(self.model.view, image, each), spent) for each in sizes]
                del image  # views are small, and many may wait
        finally:
            self.dispatcher.forget(key)
        if isinstance(source, bytes):
            self.dispatcher.costs.learn_read(spent.read)
        for stage, (size, view) in enumerate(zip(sizes, views, strict=True)):
            logits = await self._look(view, size, wish, arrived, spent)
            temperature = self.model.cuts.temperatures[stage] if reason == "cascade" else 1.0
            probabilities = self.model.probabilities(logits, temperature)
            confidence = float(probabilities.max())
            if not self._goes_on(stage, confidence, arrived, wish):
                break
        self.metrics.image(size, reason, confidence, spent.read / 1000, spent.queue / 1000)
        return Outcome(probabilities, size, reason, sizes[: stage + 1], spent.read, spent.queue, spent.compute)

    def _goes_on(self, stage: int, confidence: float, arrived: float, wish: Wish) -> bool:
        """Whether a cascade takes a further look."""
        cuts = self.model.cuts
        unsure = stage < len(cuts.thresholds) and confidence < cuts.thresholds[stage]
        return unsure and self.dispatcher.goes_on(self.clock(), stage + 1, arrived, wish)

    async def _decoded(self, source: Source, spent: _Spent) -> Tensor:
        if isinstance(source, Tensor):
            return source
        with reading():
            return await self._timed(partial(self.model.read, source), spent)

    async def _timed(self, call: Callable[[], Tensor], spent: _Spent) -> Tensor:
        """What ``call`` gives in a reader's thread; its own time, without the wait for a thread, counts as reading."""
        found, ms = await self._in(self._readers, partial(_clocked, self.clock, call))
        spent.read += ms
        return found

    async def _look(self, view: Tensor, size: Size, wish: Wish, arrived: float, spent: _Spent) -> Tensor:
        """Logits (k,) of a view, after its turn."""
        waits = self.clock()
        row = asyncio.get_running_loop().create_future()
        waiter = self.dispatcher.put(size, arrived, wish, _Turn(view, row))
        self._wake.set()
        try:
            turned: tuple[Tensor, float, float] = await row
        except asyncio.CancelledError:
            waiter.gone = True
            raise
        logits, began, compute = turned
        spent.queue += 1000 * (began - waits)
        spent.compute += compute
        return logits

    async def _run(self) -> None:
        """Batch after batch, as long as anything waits."""
        while True:
            began = self.clock()
            batch, late = self.dispatcher.take(began)
            for waiter in late:
                if not waiter.payload.row.done():
                    waiter.payload.row.set_exception(self._late(waiter.size))
            if not batch:
                await self._wake.wait()
                self._wake.clear()
                continue
            size, turns = batch[0].size, [waiter.payload for waiter in batch]
            try:
                views = [turn.view for turn in turns]
                logits = await self._in(self._engine, partial(self.model.run, size, views))
            except Exception as error:
                log.exception("a batch of %d at %s px failed", len(turns), size)
                for turn in turns:
                    if not turn.row.done():
                        turn.row.set_exception(error)
                self.dispatcher.done(self.clock(), batch)
                continue
            ended = self.clock()
            self.dispatcher.done(ended, batch)
            self.metrics.batch(size, len(turns), ended - began)
            for turn, row in zip(turns, logits, strict=True):
                if not turn.row.done():
                    turn.row.set_result((row, began, 1000 * (ended - began)))

    def _late(self, size: Size | None) -> Refused:
        size = size or self.model.rungs[0].size
        need = self.dispatcher.costs.batch_ms(size, 1) + self.dispatcher.costs.read_ms
        line = f"the deadline passed before its turn came: at {size} px an image takes about {need:.1f} ms here"
        return Refused(504, "deadline", line)

    async def _in(self, pool: ThreadPoolExecutor | None, call: Callable[[], T]) -> T:
        assert pool is not None, "the scheduler has not been entered"
        return await asyncio.get_running_loop().run_in_executor(pool, call)


def _clocked(clock: Callable[[], float], call: Callable[[], T]) -> tuple[T, float]:
    """What ``call`` gives, and its milliseconds."""
    start = clock()
    found = call()
    return found, 1000 * (clock() - start)


def readers() -> int:
    """Images that are read at a time."""
    return processors()
