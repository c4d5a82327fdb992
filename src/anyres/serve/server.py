"""uvicorn around the app: clients that are slow to begin are cut, and SIGTERM loses nothing that was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from anyres.config import UserError
from anyres.serve.options import Limits, ServeOptions
from anyres.serve.service import Service

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _impatient(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which ends a connection on which no request begins within ``limits.head_s``.

    The clock runs while a request's head comes, and after an answer: bytes that trickle do not put it back.
    """

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self.waiting: asyncio.TimerHandle | None = None
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._wait()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before and self.waiting is not None:
                self.waiting.cancel()
                if self.cycle.response_complete:
                    self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            self.waiting = self.loop.call_later(limits.head_s, self._give_up)

        def _give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Impatient


class DrainingServer(uvicorn.Server):
    """Ends in order: SIGTERM makes the probe say so, for ``drain_s`` more requests are accepted, and what was accepted
    is answered. A second signal, or Ctrl-C twice, ends it at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.asked: signal.Signals | None = None
        self._drain: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Ours, and none is raised again afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        del frame
        if self.asked is not None:
            self.should_exit = self.force_exit = True
            return
        self.asked = signal.Signals(sig)
        asyncio.get_running_loop().call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        service = self.service
        service.draining = True
        seconds = service.options.limits.drain_s if self.asked == signal.SIGTERM else 0.0
        log.info("asked to end: %.3g s more are answered, then what was accepted", seconds)
        asyncio.get_running_loop().call_later(seconds, self._close)

    def _close(self) -> None:
        self.should_exit = True


def listen(options: ServeOptions) -> socket.socket:
    """The socket that the server listens at. Raises UserError."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host.strip("[]"), options.port))
    except (OSError, OverflowError) as error:
        listener.close()
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"cannot listen at {options.host}:{options.port}: {said}: give another --host or --port"
        ) from None
    return listener


def run(app: FastAPI, listener: socket.socket, began: Callable[[str], None]) -> signal.Signals | None:
    """Serve until a signal comes; which it was. ``began`` is told the address once requests are answered."""
    service: Service = app.state.service
    limits = service.options.limits
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=_impatient(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(max(1, limits.head_s)),
        timeout_graceful_shutdown=int(limits.finish_s),
        h11_max_incomplete_event_size=32768,
    )
    server = DrainingServer(config, service)

    async def serve() -> None:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        beginning = asyncio.create_task(_once_started(server, lambda: began(address)))
        await server.serve(sockets=[listener])
        beginning.cancel()

    asyncio.run(serve())
    return server.asked


async def _once_started(server: uvicorn.Server, call: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    call()
