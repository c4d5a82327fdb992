"""A sign of life on a terminal: whenever nothing was printed for a while, a last line says what is going on."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from anyres.runs.stderr import doing, now_doing

FIRST_S, LATER_S = 0.5, 2.0
"""Seconds without a word until the line comes, at the start and later."""
STROKES = "|/-\\"
CLEAR = "\r\x1b[K"


@contextmanager
def alive(words: Sequence[str]) -> Iterator[None]:
    """Inside, the terminal is never silent for long; without a terminal on stderr nothing happens.

    ``words``: of the command line, for the first line.
    """
    if not sys.stderr.isatty() or "--quiet" in words:
        yield
        return
    line = _Line(sys.stderr)
    outside = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Watched(sys.stdout, line), _Watched(sys.stderr, line)
    try:
        verb = next((word for word in words if not word.startswith("-")), "anyres")
        with doing(f"anyres {verb}: working"), line:
            yield
    finally:
        sys.stdout, sys.stderr = outside


class _Line:
    """The line, drawn by a thread of its own."""

    def __init__(self, terminal: Any) -> None:
        self._terminal, self._lock, self._ended = terminal, threading.RLock(), threading.Event()
        self._began = self._spoke = time.monotonic()
        self._wait, self._shown = FIRST_S, False
        self._thread = threading.Thread(target=self._run, name="sign of life", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.spoken(lambda: None)

    def spoken(self, write: Any) -> Any:
        """What ``write()`` returns, called with the line out of the way."""
        with self._lock:
            if self._shown:
                self._draw(CLEAR)
                self._shown = False
            self._spoke, self._wait = time.monotonic(), LATER_S
            return write()

    def _run(self) -> None:
        while not self._ended.wait(0.2):
            with self._lock:
                now = time.monotonic()
                if now - self._spoke < self._wait or self._ended.is_set():
                    continue
                self._shown = True
                stroke = STROKES[int(5 * now) % len(STROKES)]
                what = now_doing() if "torch.nn" in sys.modules else "loading libraries"
                self._draw(f"{CLEAR}{stroke} {what} ... {now - self._began:.0f} s")

    def _draw(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._terminal.write(text)
            self._terminal.flush()


class _Watched:
    """A stream that clears the line before it writes; all else is the stream's own."""

    def __init__(self, stream: Any, line: _Line) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        """As the stream does."""
        written: int = self._line.spoken(lambda: self._stream.write(text))
        return written

    def writelines(self, lines: Sequence[str]) -> None:
        """As the stream does."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)
