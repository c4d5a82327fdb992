"""Processes that build something and time it when asked. Of this project it imports little, as each of them does."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from anyres.config import UserError
from anyres.flow import has_bf16
from anyres.ops.processors import peak_memory

SIDE = 2048  # of the square matrices whose product is the machine's rate
PATIENCE_S = 10  # for a process to end by itself
Timer = Callable[[float], Any]


class Worker:
    """A process that imports what ``work`` needs and says so, builds ``work(what)`` when asked, and then times it.

    ``work`` gives what times for so many seconds, or why it cannot.
    """

    def __init__(self, work: Callable[[Any], Timer | str], what: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, what), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self) -> Any:
        """The process's next message. Raises UserError when it died."""
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"a measuring process died (exit code {self.process.exitcode}): too little memory?"
            ) from None

    def build(self) -> Any:
        """None once it is built, or why it cannot be."""
        self.pipe.send(None)
        return self.receive()

    def ask(self, seconds: float | None) -> Any:
        """What timing for so long gave; None: its peak memory in MiB."""
        self.pipe.send(seconds)
        return self.receive()

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


def _serve(pipe: Connection, work: Callable[[Any], Timer | str], what: object) -> None:
    """The process, until its pipe is closed."""
    try:
        pipe.send(None)  # all is imported
        pipe.recv()
        timer = work(what)
        if isinstance(timer, str):
            pipe.send(timer)
            return
        pipe.send(None)
        while True:
            seconds = pipe.recv()
            pipe.send(peak_memory() / 2**20 if seconds is None else timer(seconds))
    except EOFError:
        return


def matrix_product(threads: int | None) -> Timer:
    """For a worker: the machine's matrix product, GFLOP/s in float32, and in bf16 where it has instructions for it:
    elsewhere one such product takes minutes."""
    if threads:
        torch.set_num_threads(threads)
    precisions = {"fp32": torch.float32}
    if has_bf16(torch.device("cpu")):
        precisions["bf16"] = torch.bfloat16
    pairs = {name: torch.randn(2, SIDE, SIDE).to(dtype) for name, dtype in precisions.items()}

    def rates(seconds: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, (a, b) in pairs.items():
            a @ b
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < 3 or time.perf_counter() < end:
                start = time.perf_counter()
                a @ b
                times.append(time.perf_counter() - start)
            found[name] = 2 * SIDE**3 / statistics.median(times) / 1e9
        return found

    return rates
