"""Loader processes: no signal that asks a run to stop reaches them, and none of them outlives the run.

Slurm, systemd, Kubernetes and a closed terminal signal every process of a run. The training process makes the step in
hand and saves it; for that it needs its loaders, and ends them itself.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any
from weakref import WeakSet

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from anyres.config import LoaderLost, UserError, first_line

LOOKS_EVERY = 5
"""Seconds after which a wait for a batch looks whether the workers live."""
WAITS_AT_MOST = 1200
"""Seconds without a batch that end a run."""
_SPARE = 8  # descriptors for images, checkpoints and logs
_ALIVE: WeakSet[BaseProcess] = WeakSet()
"""Loader processes that may still run."""


def start(loader: DataLoader[Any]) -> tuple[Iterator[Any], Sequence[BaseProcess]]:
    """The loader's batches, and its processes, started with those signals blocked.

    Raises UserError where the machine cannot hold them.
    """
    try:
        _try_resources(loader.num_workers)
        with _shielded(), warnings.catch_warnings():
            # Python 3.12, fork
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            batches = iter(loader)
    except OSError as error:
        told = f"{error.strerror or error}{' (/dev/shm)' if error.errno == errno.ENOSPC else ''}"
        raise UserError(
            f"{loader.num_workers} loader processes cannot be started: {told}: lower data.workers (0: none), or raise "
            "what is short: /dev/shm, `ulimit -n`, `ulimit -u`"
        ) from error
    workers = list(batches._workers) if isinstance(batches, _MultiProcessingDataLoaderIter) else []
    if workers:
        _end_with_this_process()
    _ALIVE.update(workers)
    return batches, workers


def next_item(batches: Iterator[Any], workers: Sequence[BaseProcess]) -> Any:
    """The next batch, or None at the end. Raises LoaderLost where none will come."""
    waited = 0
    while True:
        try:
            return next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:  # PyTorch's, or of the pipe to one that died
            said = first_line(error)
            if said.startswith("DataLoader timed out"):
                waited += LOOKS_EVERY
                if waited < WAITS_AT_MOST:
                    continue
                raise LoaderLost(
                    f"no batch has come for {waited} s: do the images lie where reading hangs? lower data.workers, or "
                    "data.workers=0"
                ) from None
            if workers and (how := _died(workers)):
                raise LoaderLost(
                    f"{how}, as the system does where memory is short: lower data.workers or data.cache_gib"
                ) from error
            raise


def _died(workers: Sequence[BaseProcess]) -> str | None:
    """How the first of these processes died, if one did: what a broken pipe to it means."""
    wait([process.sentinel for process in workers], timeout=1.0)
    for process in workers:
        code = process.exitcode
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            return f"a loader process {how}"
    return None


def ended(workers: Iterable[BaseProcess]) -> None:
    """Kill those of these processes that still run: SIGTERM does not reach them."""
    for process in list(workers):
        if process.is_alive():
            process.kill()
            process.join()


@cache
def _end_with_this_process() -> None:
    """Registered once multiprocessing is in use, and so run before its own, which would wait for them for ever."""
    atexit.register(ended, _ALIVE)


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Processes that are started inside have the signals that ask for a stop blocked; here they arrive afterwards.

    PyTorch's handler for the end of a child is taken back, too: it raises wherever the training step is. That a loader
    has died is found when a batch is taken, within five seconds, and there a whole step has been made.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    child = signal.getsignal(signal.SIGCHLD)
    asking = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asking)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, child)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _try_resources(workers: int) -> None:
    """Take the semaphores and descriptors that so many workers need, and give them back. Raises OSError.

    DataLoader would leave half of itself behind where they run out."""
    if not workers:
        return
    taken: list[int] = []
    held: list[object] = []
    queues: list[multiprocessing.queues.Queue[Any]] = []
    try:
        held.append(multiprocessing.Event())
        for _ in range(workers + 1):
            queues.append(multiprocessing.Queue())
            taken += os.pipe()
        taken += [os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE)]
    finally:
        for descriptor in taken:
            os.close(descriptor)
        for queue in queues:
            queue.close()
