"""What anyres logs, as plain lines on stderr: for the command line, a script and a notebook alike."""

from __future__ import annotations

import contextlib
import logging
import sys


class StderrHandler(logging.Handler):
    """Prints each record as one line on stderr, as it is. The stream is looked up anew, as progress bars replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record; where nobody listens any more (a closed pipe or terminal), the work goes on."""
        with contextlib.suppress(OSError):
            print(" ".join(self.format(record).splitlines()), file=sys.stderr)


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
