"""A command in a pseudo-terminal: what it wrote, and how long nothing came."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

from tests.runs import SERVER

SILENT_S = 3.0
"""Seconds without a byte, at most, where a process has the processor when it wants it."""
SHOWN = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}


@dataclass(frozen=True)
class Seen:
    """``text``: all that was written, in ``seconds``; ``silence``: the longest time without a byte, in seconds, less
    what the process waited for a processor meanwhile, as the kernel counts it; ``wall``: with that; ``after``: the last
    characters before it; ``code``: the exit."""

    text: str
    seconds: float
    silence: float
    wall: float
    after: str
    code: int | None


def watch(words: Sequence[object], folder: Path, *, fresh: bool = False, most_s: float = 900.0) -> Seen:
    """``anyres WORDS`` in a terminal of 80 columns, in ``folder``.

    ``fresh``: in a Python of its own, imports included; else in one forked from a server that has imported everything.
    """
    master, slave = os.openpty()
    commands = [str(word) for word in words]
    try:
        if fresh:
            with _python(commands, slave, folder) as started:
                return _read(master, started.pid, started.poll, most_s)
        with _fork(commands, os.ttyname(slave), folder) as forked:
            assert forked.pid is not None
            return _read(master, forked.pid, lambda: None if forked.is_alive() else forked.exitcode, most_s)
    finally:
        os.close(slave)
        os.close(master)


@contextlib.contextmanager
def _python(words: list[str], slave: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "anyres", *words]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=os.environ | SHOWN) as run:
        try:
            yield run
        finally:
            run.kill()


@contextlib.contextmanager
def _fork(words: list[str], name: str, folder: Path) -> Iterator[BaseProcess]:
    process = SERVER.Process(target=_in_terminal, args=(words, name, str(folder)))
    process.start()  # of the first, this starts the server, which imports for seconds
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _read(master: int, process: int, ended: Callable[[], int | None], most_s: float) -> Seen:
    """All that comes until ``ended`` gives an exit code; after its end, what is left in the terminal."""
    begun = spoke = time.monotonic()
    before = latest = _waits(process)
    text, silence, wall, after = b"", 0.0, 0.0, b""
    code = None
    while time.monotonic() - begun < most_s:
        ready = select.select([master], [], [], 0.1)[0]
        now = time.monotonic()
        if now - spoke > silence:
            latest = latest | _waits(process)  # a thread that has ended has waited too
            waited = max((wait - before.get(thread, 0.0) for thread, wait in latest.items()), default=0.0)
            if now - spoke - waited > silence:
                silence, wall, after = now - spoke - waited, now - spoke, text[-60:]
        if ready:
            text += os.read(master, 65536)
            spoke = now
            before = latest = latest | _waits(process)
        elif code is not None:
            break
        code = ended()
    return Seen(text.decode(errors="replace"), now - begun, silence, wall, after.decode(errors="replace"), code)


def _waits(process: int) -> dict[str, float]:
    """How many seconds each thread of a process was ready to run and had no processor, as Linux counts."""
    found = {}
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has just ended
            found[path.parent.name] = int(path.read_text().split()[1]) / 1e9
    return found


def _in_terminal(words: list[str], name: str, folder: str) -> None:
    os.setsid()
    terminal = os.open(name, os.O_RDWR)  # the first that a session opens is the one that controls it
    for number in range(3):
        os.dup2(terminal, number)
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    os.environ |= SHOWN
    os.chdir(folder)
    sys.argv = ["anyres", *words]
    from anyres.cli import main

    main()


def _stream(number: int) -> TextIO:
    """As Python opens a terminal: a line at a time."""
    return os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False)
