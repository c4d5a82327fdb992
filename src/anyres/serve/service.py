"""One served model with everything around it that is not HTTP's form: counts, limits, wishes, readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from starlette.requests import Request

from anyres.config import UserError
from anyres.evaluation.drift import Monitor
from anyres.flow import Size
from anyres.serve.body import GONE, Bodies
from anyres.serve.costs import Costs
from anyres.serve.dispatcher import Dispatcher, Wish
from anyres.serve.errors import Refused
from anyres.serve.guard import check_token
from anyres.serve.looking import Looking
from anyres.serve.metrics import Metrics
from anyres.serve.model import ServedModel
from anyres.serve.scheduler import Scheduler, readers

T = TypeVar("T")


class Service:
    """One model and what answers for it. ``draining``: it is about to end, and says so when it is probed."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.options = model, model.options
        costs, pace = Costs(model.lines), model.options.pace
        self.dispatcher = Dispatcher(model.rungs, costs, pace, model.cuts.sizes, readers(), model.engines)
        self.bodies = Bodies(model.options.limits)
        sizes = frozenset(model.lines)
        self.monitor = Monitor(model.held_out) if model.held_out else None
        waiting = self.dispatcher.waiting
        self.metrics = Metrics(sizes, lambda: len(waiting), lambda: self.bodies.in_flight, self.monitor)
        self.scheduler = Scheduler(model, self.dispatcher, self.metrics)
        self.looking = Looking(model, self.scheduler)
        self.draining = False

    @property
    def is_ready(self) -> bool:
        """Whether a new request would be taken."""
        now = self.scheduler.clock()
        return not self.draining and self.dispatcher.wait_ms(now) <= self.options.pace.queue_ms

    async def answering(self, request: Request, answer: Callable[[float], Awaitable[T]]) -> T:
        """What ``answer(arrived)`` gives, within the limits, counted; given up where the client leaves."""
        arrived = self.scheduler.clock()
        status = 500
        try:
            check_token(request, self.options.token)
            with self.bodies.counted(request):
                found = await answer(arrived)
            status = 200
            return found
        except Refused as error:
            status = error.status
            self.metrics.rejected(error.reason)
            raise
        finally:
            self.metrics.request(status, self.scheduler.clock() - arrived)

    async def unless_gone(self, request: Request, work: Awaitable[T]) -> T:
        """What ``work`` gives; it is cancelled, and Refused raised, where the client leaves first."""
        task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Refused(GONE, "gone", "the client has left")
        finally:
            for each in (task, left):
                each.cancel()
            with suppress(asyncio.CancelledError, Refused):
                await task

    def wish(self, size: str, deadline_ms: float | None) -> Wish:
        """What ``?size=`` and ``?deadline_ms=`` ask for. Raises Refused."""
        if size == "auto":
            return Wish(None, deadline_ms, self.options.cascade)
        if size == "cascade":
            if not self.model.cuts.sizes:
                line = "this model has no cascade: ask for size=auto, or a size"
                raise Refused(422, "size", line)
            return Wish(None, deadline_ms, True)
        try:
            asked = Size.parse(size)
            self.model.check_size(asked)
        except UserError as error:
            raise Refused(422, "size", str(error)) from None
        return Wish(asked, deadline_ms)


async def _left(request: Request) -> None:
    """Ends when the client does. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
