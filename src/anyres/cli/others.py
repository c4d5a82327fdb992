"""What other libraries say of themselves goes to a file, so that a terminal shows what a user can act on."""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import threading
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from anyres.config import first_line, printable
from anyres.imports import when_imported
from anyres.storage import cache_root

FILE = "warnings.log"
MOST_BYTES = 2**20
"""Of the file; a larger one is begun anew."""


def others_file() -> Path:
    """Where it goes."""
    return cache_root() / FILE


class OthersHandler(logging.Handler):
    """Keeps the warnings of other libraries' loggers in the file; a cache that cannot be written keeps nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Add the record, on one line."""
        with suppress(OSError, ValueError):
            path = others_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not path.is_file() or path.stat().st_size > MOST_BYTES
            with path.open("w" if fresh else "a", encoding="utf-8") as file:
                print(printable(" ".join(self.format(record).splitlines())), file=file)


def quiet_others() -> None:
    """Send other libraries' warnings to the file; those of anyres and of a user's own code are notes on stderr.

    A second call does nothing more.
    """
    _add_handler(logging.getLogger())
    warnings.showwarning = _show
    threading.excepthook = _note_thread
    if "TORCH_LOGS" not in os.environ:  # whoever sets it wants to see them
        when_imported("torch", _quiet_torch)


def _quiet_torch(_: object) -> None:
    """PyTorch's loggers have a handler of their own, and tell the root logger nothing."""
    log = logging.getLogger("torch")
    for handler in log.handlers:
        if not isinstance(handler, OthersHandler):
            handler.setLevel(logging.ERROR)
    if not log.propagate:
        _add_handler(log)


def _add_handler(log: logging.Logger) -> None:
    if not any(isinstance(handler, OthersHandler) for handler in log.handlers):
        log.addHandler(OthersHandler())


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """One warning, without file and line where it is for the user."""
    if _is_installed(filename):
        logging.getLogger("py.warnings").warning("%s (%s, %s:%s)", message, category.__name__, filename, lineno)
    else:
        with suppress(OSError, ValueError):
            print(f"note: {printable(str(message))}", file=sys.stderr)


def _note_thread(failed: threading.ExceptHookArgs) -> None:
    """One line for an exception that ended a thread, as TensorBoard's on a full disk; the rest to the file."""
    if failed.exc_value is None or isinstance(failed.exc_value, SystemExit):
        return
    where = (failed.exc_type, failed.exc_value, failed.exc_traceback)
    logging.getLogger("threads").warning("a thread ended", exc_info=where)
    with suppress(OSError, ValueError):
        print(f"note: a background thread ended: {printable(first_line(failed.exc_value), 300)}", file=sys.stderr)


def _is_installed(filename: str) -> bool:
    """Whether a warning comes from another package that is installed, or from Python itself."""
    path = Path(filename)
    if path.is_relative_to(Path(__file__).parents[1]):
        return False
    return any(path.is_relative_to(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))
