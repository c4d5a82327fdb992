"""What anyres logs, as plain lines on stderr: for the command line, a script and a notebook alike."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from anyres.config import printable


class StderrHandler(logging.Handler):
    """Prints each record as one line on stderr. The stream is looked up anew, as progress bars replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record; where nobody reads it any more, nothing, for the work goes on."""
        with suppress(OSError, ValueError):
            print(printable(" ".join(self.format(record).splitlines())), file=sys.stderr)


def show_log() -> None:
    """Print what anyres logs, from INFO on, unless the program around it has set up logging itself.

    The public functions call it, so that a script or a notebook sees what the command line shows. Later calls do
    nothing.
    """
    log = logging.getLogger("anyres")
    if log.hasHandlers():
        return
    log.addHandler(StderrHandler())
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)


def log_sentences(sentences: Iterable[str]) -> None:
    """Log each by itself."""
    for sentence in sentences:
        logging.getLogger("anyres").info(sentence)


_doing = [""]


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Inside, ``now_doing`` gives ``what``, as ``timing 9 sizes``: the command line shows it where nothing else is
    printed for a while."""
    _doing.append(what)
    try:
        yield
    finally:
        _doing.pop()


def now_doing() -> str:
    """What the work in hand is called; empty where nobody said."""
    return _doing[-1]
