"""How a server behaves, as values. Imports neither torch nor a web framework."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from anyres.config import UserError
from anyres.flow import Size

TOKEN = "ANYRES_TOKEN"
"""The environment variable that may hold the token."""
LEAST_SIDE = 8
"""Pixels of the shortest side that may be asked for."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and how long anything may take."""

    megabytes: float = 20.0  # of a request's body, in 10^6 bytes
    megapixels: float = 50.0  # of one image, as its header says, in 10^6 pixels
    images: int = 16  # in one request of the open inference protocol
    side: int = 512  # px, the longest side of a size that may be asked for
    in_flight: int = 128  # requests that are read or answered at a time
    connections: int = 512  # that are open at a time
    head_s: float = 10.0  # until a request's head is there
    read_s: float = 20.0  # until a request's body is there
    drain_s: float = 3.0  # requests are still accepted after SIGTERM, so that a balancer notices
    finish_s: float = 30.0  # after that, for what was accepted


@dataclass(frozen=True)
class Pace:
    """How a size is chosen and how long requests may queue."""

    batch: int = 8  # images of one size that are run at a time; a power of two
    queue_ms: float = 500.0  # of predicted waiting, beyond which a request is refused
    busy: float = 0.85  # share of the time in (0, 1] that may be planned with before smaller sizes are chosen
    margin: float = 1.3  # what predicted times are multiplied by where a deadline has to be met


@dataclass(frozen=True)
class ServeOptions:
    """One server."""

    host: str = "127.0.0.1"  # address to listen at
    port: int = 8000  # 0: any free one
    token: str | None = None  # that a client must send as `Authorization: Bearer TOKEN`; None: none
    open: bool = False  # serve other machines without a token
    allow_hosts: tuple[str, ...] = ()  # names this server is called by; (): those of this machine's loopback, or any
    backend: str = "eager"  # the engine for the sizes that are chosen from; others run in eager PyTorch
    sizes: tuple[Size, ...] = ()  # that are chosen from; (): those of the run's curve, or of its recipe
    cascade: bool = False  # requests that ask for no size go through the run's cascade
    limits: Limits = Limits()
    pace: Pace = Pace()

    def check(self) -> None:
        """Raises UserError for what would be unsafe or has no meaning."""
        limits, pace = self.limits, self.pace
        if not is_loopback(self.host) and self.token is None and not self.open:
            raise UserError(
                f"--host {self.host} lets other machines in: give --token-file FILE (or {TOKEN}), or --open for a "
                "server that answers anyone"
            )
        if self.token is not None and (len(self.token) < 16 or not self.token.isascii() or " " in self.token):
            raise UserError("the token must have 16 or more characters of ASCII without spaces: make another")
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port {self.port} is none: give 0 (any free one) to 65535")
        if pace.batch < 1 or pace.batch & (pace.batch - 1):
            raise UserError(f"--batch {pace.batch} must be a power of two, as 8")
        positive = {
            "--max-megabytes": limits.megabytes,
            "--max-megapixels": limits.megapixels,
            "--queue-ms": pace.queue_ms,
            "--in-flight": limits.in_flight,
            "--read-seconds": limits.read_s,
        }
        for name, value in positive.items():
            if not value > 0:
                raise UserError(f"{name} {value:g} must be above 0")
        if limits.drain_s < 0:
            raise UserError(f"--drain-seconds {limits.drain_s:g} must be 0 or more")
        if not LEAST_SIDE <= limits.side <= 4096:
            raise UserError(f"--max-side {limits.side} must be {LEAST_SIDE} to 4096 px")
        for size in self.sizes:
            if not LEAST_SIDE <= min(size) <= max(size) <= limits.side:
                raise UserError(f"--sizes {size}: a side is {LEAST_SIDE} to {limits.side} px here (--max-side)")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names in a request's Host header that are answered: a page elsewhere may point its own name here."""
        if self.allow_hosts:
            return self.allow_hosts
        return ("localhost", "127.0.0.1", "[::1]", "::1", self.host) if is_loopback(self.host) else ("*",)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
