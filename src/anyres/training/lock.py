"""A run folder is used by one process at a time; a second one is told by which.

The lock is the kernel's record lock on ``RUN/.lock`` (``fcntl.lockf``): it goes with its process however that ends, it
is not inherited by the loaders that a killed run leaves for seconds, and NFS knows it. filelock's own is inherited, and
empties the file in which the holder's name stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path

from anyres.config import UserError

LOCK = ".lock"


class RunLock:
    """The lock of the run folder ``run``; as a context manager it is given back at the end."""

    def __init__(self, run: Path) -> None:
        self._path = run / LOCK
        self._descriptor: int | None = None

    def take(self) -> None:
        """Hold the lock from now on; the folder is there. Once it is held nothing happens.

        Raises UserError, which names the process that holds it. Where the file system knows no locks, as some
        network's do, there is none.
        """
        if self._descriptor is not None or sys.platform == "win32":
            return
        import fcntl

        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                holder = _holder(descriptor)
                os.close(descriptor)
                raise UserError(
                    f"{self._path.parent} is in use by {holder}: wait for its end, or choose another --out"
                ) from None
            except OSError:  # no locks here
                os.close(descriptor)
                return
            if os.fstat(descriptor).st_nlink:
                break
            os.close(descriptor)  # its holder has just removed it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        self._descriptor = descriptor

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._descriptor is not None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # the folder may be gone
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> str:
    """The process that a lock's file names."""
    try:
        known = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(known['process'])} on {str(known['host'])[:64]!a}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
