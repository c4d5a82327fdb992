"""How fast a model runs here: each configuration in a process of its own, timed in turn so that they share the weather.

A configuration is a model, its form (folded, plain, or a peer's), an engine, a precision, a size and a batch. One more
process measures what the machine's matrix product does in the same run; a row's share of that rate is its distance
from the floor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from anyres.deploy.engines.backend import Choice, Unavailable, build
from anyres.deploy.fuse import fuse
from anyres.deploy.worker import Timer, Worker, matrix_product
from anyres.flow import Size

WARM_UP = 2


@dataclass(frozen=True)
class Job:
    """What is measured: ``make`` gives the plain module, in its process; ``folded`` first; ``flops`` of one image.
    ``tuned``: as for ``build``."""

    name: str
    make: Callable[[], nn.Module]
    folded: bool
    choice: Choice
    size: Size
    batch: int
    flops: int
    threads: int | None = None
    calibration: tuple[torch.Tensor, ...] = ()
    tuned: bool = True


@dataclass(frozen=True)
class Row:
    """What came out. ``rounds``: median images/s of each round; ``p50_ms``, ``p99_ms``: of one batch, over all calls;
    ``peak_mib``: resident memory of its process; ``share``: of the matrix rate in its precision (int8: of bf16's)."""

    job: Job
    images_per_s: float
    rounds: tuple[float, ...]
    p50_ms: float
    p99_ms: float
    peak_mib: float
    gflops_per_s: float
    share: float

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        job = self.job
        return {
            "name": job.name,
            "folded": job.folded,
            "backend": str(job.choice),
            "size": str(job.size),
            "batch": job.batch,
            "images/s": round(self.images_per_s, 2),
            "rounds": [round(value, 2) for value in self.rounds],
            "p50 ms": round(self.p50_ms, 2),
            "p99 ms": round(self.p99_ms, 2),
            "peak MiB": round(self.peak_mib),
            "GFLOP/s": round(self.gflops_per_s, 1),
            "share of the matrix rate": round(self.share, 3),
        }


@dataclass(frozen=True)
class Failed:
    """A configuration that does not run here, and why."""

    job: Job
    reason: str


def measure(
    jobs: Sequence[Job],
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    processes: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], list[Failed], dict[str, float]]:
    """Every job timed for ``rounds`` x ``seconds``, the jobs in turn; the rows, the failures and the matrix rates.

    The rates are GFLOP/s by precision, medians over the rounds. Processes wait while another is timed. ``processes``:
    all are started anew so many times, each time for so many rounds, as two of one program differ by some percent.
    """
    found = [Timed(job) for job in jobs]
    failed: list[Failed] = []
    rates: list[dict[str, float]] = []
    for _ in range(processes):
        with ExitStack() as workers:
            say(f"starting {len(found) + 1} processes")
            floor = workers.enter_context(Worker(matrix_product, jobs[0].threads))
            started = [(timed, workers.enter_context(Worker(_job, timed.job))) for timed in found]
            for worker in (floor, *(worker for _, worker in started)):
                worker.hear()  # nothing is built, as that is timed too, while others are still importing
            floor.build()
            crew: list[tuple[Timed, Worker]] = []
            for timed, worker in started:
                job = timed.job
                say(f"{job.name}, {job.choice}{', folded' if job.folded else ''}: building")
                answer = worker.build()
                if isinstance(answer, str):
                    failed.append(Failed(job, answer))
                else:
                    crew.append((timed, worker))
            for turn in range(rounds):
                say(f"round {turn + 1} of {rounds}")
                rates.append(floor.ask(0.2))
                for i in range(len(crew)):
                    timed, worker = crew[(turn + i) % len(crew)]  # another one each time follows the matrix product
                    timed.rounds.append(worker.ask(seconds))
            for timed, worker in crew:
                timed.peak = max(timed.peak, worker.ask(None))
            found = [timed for timed, _ in crew]
    matrix = {name: statistics.median(rate[name] for rate in rates) for name in rates[0]}
    return [_row(timed, matrix) for timed in found], failed, matrix


@dataclass
class Timed:
    """A job, the seconds of its calls in each round, and its peak memory in MiB."""

    job: Job
    rounds: list[list[float]] = field(default_factory=list)
    peak: float = 0.0


def _row(timed: Timed, matrix: dict[str, float]) -> Row:
    job = timed.job
    calls = np.array([value for turn in timed.rounds for value in turn])
    per_round = tuple(job.batch / statistics.median(turn) for turn in timed.rounds)
    speed = statistics.median(per_round)
    done = speed * job.flops / 1e9
    reference = matrix["fp32" if job.choice.precision == "fp32" else "bf16"]
    p50, p99 = (1000 * float(q) for q in np.percentile(calls, (50, 99)))
    return Row(job, speed, per_round, p50, p99, timed.peak, done, done / reference)


def _job(job: Job) -> Timer | str:
    """For a worker: build it; the seconds of its calls."""
    if job.threads:
        torch.set_num_threads(job.threads)
    try:
        model = job.make().eval()
        model = fuse(model, (job.size.height, job.size.width)) if job.folded else model
        x = torch.randn(job.batch, 3, *job.size, generator=torch.Generator().manual_seed(0))
        run = build(model, job.choice, x, job.calibration, job.threads, job.tuned)
        for _ in range(WARM_UP):
            run(x)
    except Unavailable as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"

    def calls(seconds: float) -> list[float]:
        run(x)  # wakes its threads
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            run(x)
            times.append(time.perf_counter() - start)
        return times

    return calls
