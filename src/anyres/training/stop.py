"""Signals that ask a run to stop: Ctrl-C, and what Slurm, systemd, Kubernetes or a closed terminal send.

Outside a run's loop the command line ends at once (``ended_by_signal``). Inside, the step in hand is made and saved
first (``Stop``). PyTorch is not imported here, so that signals are heard while it is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType

from anyres.config import Stopped

ASKING = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if name in signal.Signals.__members__
)
"""SIGTERM: a scheduler or ``kill``; SIGHUP: the terminal is closed; SIGUSR1: Slurm's usual warning before the end."""


_CAME: list[int] = []
"""The signals that ``ended_by_signal`` has been sent: a library that is imported may swallow what they raise."""
AGAIN_S = 0.02
"""After so long a signal that was lost is sent once more."""


class Interrupted(BaseException):
    """A signal came in a part that can be left at once."""


def exit_code(number: signal.Signals) -> int:
    """What a process that stopped for this signal exits with: 130 after Ctrl-C, else 143."""
    return 130 if number == signal.SIGINT else 143


def stopped_by(number: int) -> Stopped:
    """What ends a process that this signal asked to stop."""
    told = signal.Signals(number)
    return Stopped("stopped" if told == signal.SIGINT else f"stopped by {told.name}", exit_code(told))


@contextlib.contextmanager
def ended_by_signal() -> Iterator[Sequence[int]]:
    """Inside, SIGTERM, SIGHUP and SIGUSR1 raise Stopped wherever the program is, and Ctrl-C KeyboardInterrupt.

    SIGHUP stays ignored where it was, as under ``nohup``. Gives the signals that came so far.
    """
    came = _CAME
    came.clear()

    def end(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise stopped_by(number)

    def lost(error: BaseException | None) -> int | None:
        return came[-1] if came and isinstance(error, Stopped | KeyboardInterrupt) else None

    try:
        with _sent_again(lost), _handled(end):
            yield came
    finally:
        came.clear()


class Stop:
    """Inside, a signal asks the loop to stop after the step in hand; a second Ctrl-C interrupts at once.

    ``asked``: the first signal that came, None if none did.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._leaves = self._again = False
        self._handled = _handled(self._ask)

    def __enter__(self) -> Stop:
        if _CAME:
            raise stopped_by(_CAME[-1])
        self._handled.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handled.__exit__(kind, error, trace)

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Inside, the first signal raises Interrupted at once, also if it has come already."""
        if self.asked is not None:
            raise Interrupted
        self._leaves = True
        try:
            with _sent_again(self._lost):
                yield
        finally:
            self._leaves = False

    def _lost(self, error: BaseException | None) -> int | None:
        if not isinstance(error, Interrupted):
            return None
        self._leaves = self._again = True
        return self.asked

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        again, self._again = self._again, False
        if self.asked is not None and number == signal.SIGINT and not again:
            raise KeyboardInterrupt
        if self.asked is None and number == signal.SIGINT and os.isatty(2):
            with contextlib.suppress(OSError):  # by the system itself: a handler may not print
                os.write(2, b"\r\x1b[Kstopping after this step, with everything saved; Ctrl-C again: at once\n")
        self.asked = self.asked or signal.Signals(number)
        if self._leaves:
            self._leaves = False
            raise Interrupted


@contextlib.contextmanager
def _sent_again(lost: Callable[[BaseException | None], int | None]) -> Iterator[None]:
    """Inside, a signal is sent once more, a moment later, where Python only prints what its handler raised.

    It does so within a destructor, a weak reference's callback and a hook at a fork. ``lost``: the signal that such an
    exception came from; None for any other.
    """

    def hook(args: sys.UnraisableHookArgs) -> None:
        number = lost(args.exc_value)
        if number is None:
            before(args)
        else:
            timer = threading.Timer(AGAIN_S, signal.raise_signal, (number,))
            timer.daemon = True
            timer.start()

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _handled(handler: object) -> Iterator[None]:
    """Inside, ``handler`` is called for ``ASKING``; in another thread than the main one nothing changes."""
    before: dict[signal.Signals, object] = {}
    with contextlib.suppress(ValueError):  # not the main thread: the caller keeps its own handlers
        for number in ASKING:
            if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue
            before[number] = signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)  # type: ignore[arg-type]
