"""How a verb ends: whatever was raised becomes one line and an exit code.

0: done. 2: something the user can mend, with what to change. 1: a fault of ours, its traceback in a file that the line
names. 3: the answer that there is none (`pick`). 130: stopped by Ctrl-C, 143: by another signal, with everything saved.
141: whoever read the output has gone.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anyres.config import Stopped, UserError, first_line, printable
from anyres.storage import cache_root, refusal

_ROOM = "make room and give the same command again"
_PROCESSES = "raise the limit (`ulimit -u`) or lower data.workers"
_ELSEWHERE = "change its permissions, or name another place"
_MEND = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit (`ulimit -f`), or name a place on another disk",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: "name another place",
    errno.EMFILE: "raise the limit (`ulimit -n 4096`) or lower data.workers",
    errno.ENFILE: "close programs, or raise fs.file-max",
    errno.ENOMEM: "lower data.batch_size, data.workers or the sizes",
    errno.EAGAIN: _PROCESSES,
    errno.ENAMETOOLONG: "name another place",
    errno.EIO: "the disk fails: name a place on another one",
}
"""What to change where the system refused."""
_SAID = (
    (
        r"shared memory|/dev/shm|unable to mmap|bus error",
        "the shared memory (/dev/shm) is too small: make it larger (`docker run --shm-size=1g`) or set data.workers=0",
    ),
    (
        r"can('t|not) allocate memory|out of memory|not enough memory|std::bad_alloc|unable to allocate",
        "the memory is too small: lower data.batch_size, data.workers or the sizes",
    ),
    (
        r"can't start new thread|pthread_create|resource temporarily unavailable",
        f"no more processes or threads may be started: {_PROCESSES}",
    ),
    (r"received 0 items of ancdata", "too many files are open: raise the limit (`ulimit -n 4096`)"),
)
"""What libraries say, as a pattern, of what the user can mend."""


@dataclass(frozen=True)
class Ending:
    """An exit code, and what is printed on stderr; "": nothing."""

    code: int
    line: str


def ending(error: BaseException) -> Ending:
    """How a verb that raised ``error`` ends. Writes the traceback file of a fault of ours."""
    if isinstance(error, Stopped):
        return Ending(error.code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(130, "stopped")
    if isinstance(error, UserError):
        return Ending(2, f"error: {_said(error)}")
    if isinstance(error, BrokenPipeError) and _stdout_is_gone():
        return Ending(141, "")
    line = next((line for cause, meant in _causes(error) if (line := _mendable(cause, meant))), None)
    if line is not None:
        return Ending(2, f"error: {line}")
    what = f"{type(error).__name__}: {first_line(error)}"
    return Ending(1, f"error: a fault of anyres ({printable(what, 300)}): {_kept(error)}")


def _causes(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The exception and what led to it, each once, and whether it was meant as the cause: raised, or ``from`` it."""
    seen: list[BaseException] = []
    following, meant = error, True
    while following not in seen:
        seen.append(following)
        yield following, meant
        if following.__cause__ is not None:
            following = following.__cause__
        elif following.__context__ is not None and not following.__suppress_context__:
            following, meant = following.__context__, False


def _mendable(error: BaseException, meant: bool) -> str | None:
    """What the user can change about ``error``; None if nothing."""
    number, text = refusal(error), " ".join(str(error).split())
    for pattern, line in _SAID:
        if not isinstance(error, UserError) and re.search(pattern, text, re.IGNORECASE):
            return line
    if isinstance(error, MemoryError):
        return _SAID[1][1]
    names = (error.filename2, error.filename) if isinstance(error, OSError) else ()
    name = next((os.fsdecode(name) for name in names if isinstance(name, str | bytes)), None)
    if number is not None and number in _MEND:
        line = f"{os.strerror(number)}: {_MEND[number]}"
        return f"{name}: {line}" if name else line
    if not meant or not isinstance(error, UserError | OSError):
        return None
    return f"{name}: {error.strerror}" if isinstance(error, OSError) and name else _said(error)


def _said(error: BaseException) -> str:
    """What an exception says; of one from a loader's process, which comes with its traceback, the last line."""
    text = str(error).strip()
    if "Original Traceback (most recent call last)" not in text:
        return text or type(error).__name__
    return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])


def _stdout_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads."""
    import select

    if sys.platform == "win32":  # which cannot tell, and has few other pipes
        return True
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _kept(error: BaseException) -> str:
    """Where the traceback lies, and what to do with it."""
    text = "".join(traceback.format_exception(error)).encode(errors="backslashreplace")
    for folder in (Path(tempfile.gettempdir()), cache_root(), Path()):
        try:
            descriptor, name = tempfile.mkstemp(".txt", "anyres-traceback-", folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
        except OSError:
            continue
        return f"please report it with {name}"
    return "its traceback found no room on any disk; make room and try again"
