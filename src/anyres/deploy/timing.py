"""How fast a model runs here: each configuration in a process of its own, all timed in turn.

A configuration is a model, its form (folded, plain, or a peer's), an engine, a precision, a size and a batch. One more
process measures the machine's matrix product in the same rounds; a row's share of that rate is its distance from the
hardware's limit.
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

from anyres.config import first_line
from anyres.deploy.engines.backend import Backend, build
from anyres.deploy.engines.engine import BackendUnavailable
from anyres.deploy.fuse import fuse
from anyres.deploy.worker import Timer, Worker, matrix_product
from anyres.flow import Size, is_disturbed

WARM_UP = 2


@dataclass(frozen=True)
class Job:
    """One configuration to measure."""

    name: str  # whose model it is: anyres, or a peer
    make: Callable[[], nn.Module]  # gives the plain model, in the job's process
    folded: bool  # fold it first
    backend: Backend  # engine and precision
    size: Size  # of the images
    batch: int  # images at a time
    flops: int  # of one image
    threads: int | None = None  # of the CPU; None: as many as PyTorch uses
    calibration: tuple[torch.Tensor, ...] = ()  # for int8, see ``build``
    tuned: bool = True  # see ``build``
    channels: int = 3  # of an image


@dataclass(frozen=True)
class Row:
    """The measurement of one configuration."""

    job: Job
    images_per_s: float  # median of the rounds
    rounds: tuple[float, ...]  # median images/s of each round
    p50_ms: float  # of one batch, over all calls
    p99_ms: float
    peak_mib: float  # resident memory of its process
    gflops_per_s: float
    share: float  # of the matrix rate in its precision (int8: of bf16's; without bf16 here: of float32's)

    @property
    def disturbed(self) -> bool:
        """Whether the rounds differ too much to say anything: see ``anyres.flow.is_disturbed``."""
        return is_disturbed(self.rounds)

    def facts(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        job = self.job
        return {
            "name": job.name,
            "folded": job.folded,
            "backend": str(job.backend),
            "size": str(job.size),
            "batch": job.batch,
            "images/s": round(self.images_per_s, 2),
            "rounds": [round(value, 2) for value in self.rounds],
            "disturbed": self.disturbed,
            "p50 ms": round(self.p50_ms, 2),
            "p99 ms": round(self.p99_ms, 2),
            "peak MiB": round(self.peak_mib),
            "GFLOP/s": round(self.gflops_per_s, 1),
            "share of the matrix rate": round(self.share, 3),
        }


@dataclass(frozen=True)
class Failed:
    """A configuration that does not run here."""

    job: Job
    reason: str


def measure(
    jobs: Sequence[Job],
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    processes: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], list[Failed], dict[str, float]]:
    """Time every job for ``rounds`` x ``seconds``, the jobs in turn. Returns rows, failures and the matrix rates.

    The rates are GFLOP/s by precision, medians over the rounds. Processes wait while another is timed. ``processes``:
    all are started anew this many times, each time for ``rounds``, as two processes of one program differ by some
    percent. ``progress`` is told what happens now.
    """
    found = [JobTimes(job) for job in jobs]
    failed: list[Failed] = []
    rates: list[dict[str, float]] = []
    for _ in range(processes):
        with ExitStack() as workers:
            progress(f"starting {len(found) + 1} processes")
            floor = workers.enter_context(Worker(matrix_product, jobs[0].threads))
            started = [(timed, workers.enter_context(Worker(_job, timed.job))) for timed in found]
            for worker in (floor, *(worker for _, worker in started)):
                worker.receive()  # nothing is built, as that is timed too, while others are still importing
            floor.build()
            crew: list[tuple[JobTimes, Worker]] = []
            for timed, worker in started:
                job = timed.job
                progress(f"{job.name}, {job.backend}{', folded' if job.folded else ''}: building")
                answer = worker.build()
                if isinstance(answer, str):
                    failed.append(Failed(job, answer))
                else:
                    crew.append((timed, worker))
            for turn in range(rounds):
                progress(f"round {turn + 1} of {rounds}")
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
class JobTimes:
    """A job, the seconds of its calls in each round, and its peak memory in MiB."""

    job: Job
    rounds: list[list[float]] = field(default_factory=list)
    peak: float = 0.0


def _row(timed: JobTimes, matrix: dict[str, float]) -> Row:
    job = timed.job
    calls = np.array([value for turn in timed.rounds for value in turn])
    per_round = tuple(job.batch / statistics.median(turn) for turn in timed.rounds)
    speed = statistics.median(per_round)
    done = speed * job.flops / 1e9
    reference = matrix["fp32"] if job.backend.precision == "fp32" else matrix.get("bf16", matrix["fp32"])
    p50, p99 = (1000 * float(q) for q in np.percentile(calls, (50, 99)))
    return Row(job, speed, per_round, p50, p99, timed.peak, done, done / reference)


def _job(job: Job) -> Timer | str:
    """For a worker: build it; the seconds of its calls."""
    if job.threads:
        torch.set_num_threads(job.threads)
    try:
        model = job.make().eval()
        model = fuse(model, (job.size.height, job.size.width)) if job.folded else model
        x = torch.randn(job.batch, job.channels, *job.size, generator=torch.Generator().manual_seed(0))
        run = build(model, job.backend, x, job.calibration, job.threads, job.tuned)
        for _ in range(WARM_UP):
            run(x)
    except BackendUnavailable as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)[:200]}"

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
