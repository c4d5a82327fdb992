"""Processes that build something and time it when asked. Of this project it imports little, as each of them does."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from anyres.config import UserError

SIDE = 2048  # of the square matrices whose product is the machine's rate
PATIENCE_S = 10  # for a process to end by itself


class Worker:
    """A process that imports what its work needs and says so; builds something when asked; then times it when asked."""

    def __init__(self, work: Callable[..., None], what: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, what), daemon=True)
        self.process.start()
        theirs.close()

    def hear(self) -> Any:
        """What it says next. Raises UserError when it died."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"a measuring process died (exit code {self.process.exitcode}): too little memory?"
            ) from None

    def build(self) -> Any:
        """None once it is built, or why it cannot be."""
        return self.ask(None)

    def peak(self) -> Any:
        """Its peak memory in MiB, once it is built."""
        return self.ask(None)

    def ask(self, seconds: float | None) -> Any:
        """What timing for so long gave."""
        self.pipe.send(seconds)
        return self.hear()

    def close(self) -> None:
        """End it: by itself, as the pipe is closed; if it will not, by force."""
        self.pipe.close()
        self.process.join(PATIENCE_S)
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait(pipe: Connection) -> None:
    """A worker's first line: say that all is imported, and wait to be asked to build; without that it ends."""
    pipe.send(None)
    try:
        pipe.recv()
    except EOFError:
        raise SystemExit from None


def asked(pipe: Connection) -> Iterator[float]:
    """The seconds asked for, one after another; answers for the peak memory itself."""
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        if seconds is None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pipe.send(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)
        else:
            yield seconds


def matrix_product(pipe: Connection, threads: int | None) -> None:
    """A worker: the machine's matrix product, GFLOP/s in float32 and bf16."""
    wait(pipe)
    if threads:
        torch.set_num_threads(threads)
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    pairs = {name: torch.randn(2, SIDE, SIDE).to(dtype) for name, dtype in precisions.items()}
    pipe.send(None)
    for seconds in asked(pipe):
        rates: dict[str, float] = {}
        for name, (a, b) in pairs.items():
            a @ b
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                a @ b
                times.append(time.perf_counter() - start)
            rates[name] = 2 * SIDE**3 / statistics.median(times) / 1e9
        pipe.send(rates)
