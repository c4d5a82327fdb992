"""The worker on many machines by Ray Data: numbers of parts go out, rows come back, and the driver writes them.

What made Ray jobs lose work or stand still is avoided by the shape of this one:

* A block is one part. Small inputs that Ray may join into one block would come back at the end, all at once.
* Nothing but the workers needs a processor: what is answered is known from the parts on disk, so a job that continues
  has no filter beside them; and the workers leave processors free (``pool_for``).
* What travels are numbers, eight bytes for ``PART`` images. Each worker reads its part of the list, then the images.

Every node must see the list (the hidden folder beside the answers), the images and the run at the same paths.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anyres.config import UserError
from anyres.data.image_list import StoredList
from anyres.runs.bulk.job import Job
from anyres.runs.bulk.options import BulkOptions, Engine
from anyres.runs.bulk.worker import AnswerRow, Worker
from anyres.runs.opened import ModelSpec
from anyres.runs.ray_cluster import cluster, everywhere, open_there, reason_of

log = logging.getLogger(__name__)
SPARE = 2
"""Processors of a cluster that workers leave to Ray, where it has more."""
SILENT_S = 60.0
"""After so long without a part the user is told."""


@dataclass(frozen=True)
class Pool:
    """The workers of a cluster."""

    workers: int  # at most
    cpus: int  # that each takes, as Ray counts them; PyTorch gets as many threads
    gpus: int  # that each takes


def pool_for(cpus: int, gpus: int, most: int | None = None) -> Pool:
    """Workers for a cluster with so many processors and GPUs: one for each GPU, or for each processor, but for those
    that are left free. ``most``: no more workers than that."""
    free = max(0, cpus - SPARE)
    if gpus >= 1:
        workers = min(gpus, most or gpus)
        return Pool(workers, 1 if free >= workers else 0, 1)
    workers = max(1, free)
    return Pool(min(workers, most or workers), 1 if cpus >= 2 else 0, 0)


class RayWorker:
    """``Worker`` as Ray Data calls it: a block with the number of one part -> the number, and its rows as JSON."""

    def __init__(self, spec: ModelSpec, options: BulkOptions, listed: StoredList, digest: str) -> None:
        self.worker, self.listed = Worker(spec, options, open_there(spec, digest)), listed

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        parts = [int(part) for part in block["part"]]
        return {"part": parts, "rows": [json.dumps(self.worker.answer(self.listed.read(part))) for part in parts]}


def answers_on_ray(
    job: Job, missing: Sequence[int], spec: ModelSpec, options: BulkOptions, engine: Engine, digest: str
) -> Iterator[tuple[int, Sequence[AnswerRow]]]:
    """The rows of the ``missing`` parts, in the order in which they come; those of a node that is lost come from
    another. ``digest``: of the weights. Raises UserError where the cluster or a worker fails."""
    with cluster(engine.address, "--engine ray", "ray.data") as ray:
        from ray.data import ActorPoolStrategy, DataContext

        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        found = ray.cluster_resources()
        pool = pool_for(int(found.get("CPU", 0)), int(found.get("GPU", 0)), engine.workers)
        pool = replace(pool, workers=min(pool.workers, len(missing)))
        log.info("ray: up to %d workers on %d nodes", pool.workers, sum(node["Alive"] for node in ray.nodes()))
        answered = blocks_of(missing).map_batches(
            RayWorker,
            fn_constructor_args=(everywhere(spec), options, job.listed.everywhere(), digest),
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, max_size=pool.workers, initial_size=pool.workers),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        with _watched() as heard, _told(ray):
            for block in answered.iter_batches(batch_size=None, prefetch_batches=0):
                for number, rows in zip(block["part"], block["rows"], strict=True):
                    heard.set()
                    yield int(number), json.loads(rows)


def blocks_of(parts: Sequence[int]) -> Any:
    """A data set of Ray with a block for each part, which is its number, int64."""
    from ray.data import from_items

    return from_items([{"part": number} for number in parts], override_num_blocks=len(parts))


@contextmanager
def _told(ray: Any) -> Iterator[None]:
    """What a worker or the cluster raises inside, as one line."""
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        yield
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise UserError(f"Ray: {reason_of(str(error))}; the same command continues") from None


@contextmanager
def _watched() -> Iterator[threading.Event]:
    """Inside, the user is told of a cluster that gives nothing for a while; the event says that it gave something."""
    heard, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(SILENT_S):
            if not heard.is_set():
                log.info("ray: no part came for %.0f s: `ray status` shows what the cluster waits for", SILENT_S)
            heard.clear()

    thread = threading.Thread(target=watch, name="ray-watch", daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        ended.set()
        with suppress(RuntimeError):
            thread.join()
