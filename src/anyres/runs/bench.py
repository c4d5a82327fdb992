"""The speed of models on this machine, by engine, precision, size and batch, beside that of peers."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import rich
import timm
import torch
from torch import nn

from anyres.config import UserError, nearest
from anyres.deploy.engines.backend import Backend, candidates
from anyres.deploy.predictor import machine
from anyres.deploy.timing import Failed, Job, Row, measure
from anyres.evaluation.plots.bar_chart import bars
from anyres.evaluation.speed import macs
from anyres.flow import Size
from anyres.models.contract import Backbone
from anyres.models.registry import aliases
from anyres.runs.opened import UNTRAINED, load
from anyres.storage import write_text

log = logging.getLogger(__name__)

COMPARED = (
    "restv2_tiny",
    "rest_small",
    "resformer_small",
    "resmlp_24",
    "deit_small",
    "deit3_small",
    "cait_xxs24_224",
    "S60",
)
"""One of each family: what the project's own benchmarks compare."""
PEERS = ("plain", "timm", "onnxruntime", "openvino")
OURS = "anyres"


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured: every model at every size and batch."""

    models: Sequence[str]  # models, weights of the index, or run folders
    weights: str | None  # of a model named alone; None: as it is initialized
    sizes: Sequence[Size]  # of the images
    batches: Sequence[int]  # images at a time
    backends: Sequence[str]  # as openvino:bf16; empty: all that this machine has
    against: Sequence[str]  # peers, of PEERS
    rounds: int  # of every configuration, in turn
    seconds: float  # of each round of each configuration
    threads: int | None  # of the CPU; None: as many as PyTorch uses
    compiled: bool = True  # PyTorch peers also by its compiler, which takes a minute each
    processes: int = 1  # of each configuration, one after another

    def __post_init__(self) -> None:
        for peer in self.against:
            if peer not in PEERS:
                raise UserError(f"--against {peer!r} is none of {', '.join(PEERS)}{nearest(peer, PEERS)}")


@dataclass(frozen=True)
class Comparison:
    """One model at one size and batch, by every backend and peer."""

    model: str
    size: Size
    batch: int
    rows: Sequence[Row]  # fastest first
    failed: Sequence[Failed]
    matrix: Mapping[str, float]  # this machine's matrix product, GFLOP/s by precision
    ratios: Sequence[dict[str, Any]]  # see ``ratios``


def bench_models(
    config: BenchmarkConfig,
    into: Path | None = None,
    picture: Path | None = None,
    show: Callable[[Comparison], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure all, give each comparison to ``show`` once it is done, and return the facts.

    ``into``: a JSON file, written anew after every comparison. ``picture``: a PNG file of bars. Raises UserError.
    """
    facts: dict[str, Any] = {"torch": torch.__version__, "machine": machine(torch.device("cpu"))}
    facts |= {"threads": config.threads or torch.get_num_threads()}
    facts |= {"matrix GFLOP/s": [], "rows": [], "ratios": [], "failed": []}
    for model, size, batch in product(config.models, config.sizes, config.batches):
        compared = compare(config, model, size, batch)
        show(compared)
        facts["matrix GFLOP/s"].append({name: round(rate, 1) for name, rate in compared.matrix.items()})
        facts["rows"] += [{"model": model} | row.facts() for row in compared.rows]
        facts["ratios"] += [{"size": str(size), "batch": batch} | ratio for ratio in compared.ratios]
        facts["failed"] += [_failure(model, each) for each in compared.failed]
        if into:
            write_text(into, json.dumps(facts, indent=1) + "\n")
    if picture:
        shown = [
            (
                f"{row['model']} at {row['size']} px, {row['batch']} at a time",
                f"{row['name']} {row['backend']}" + (" (disturbed)" if row["disturbed"] else ""),
                row["images/s"],
            )
            for row in facts["rows"]
        ]
        bars(shown, picture, "Images per second")
    return facts


def compare(config: BenchmarkConfig, model: str, size: Size, batch: int) -> Comparison:
    """One model at one size and batch. What cannot run here is logged."""
    jobs = list(jobs_for(config, model, size, batch))
    with rich.get_console().status(model) as status:

        def progress(text: str) -> None:
            status.update(f"{model} at {size} px, {batch} at a time: {text}")

        rows, failed, matrix = measure(
            jobs, rounds=config.rounds, seconds=config.seconds, processes=config.processes, progress=progress
        )
    for each in failed:
        log.info("%s, %s, is left out: %s", each.job.name, each.job.backend, each.reason)
    rows.sort(key=lambda row: -row.images_per_s)
    return Comparison(model, size, batch, rows, failed, matrix, list(ratios(model, rows)))


def jobs_for(config: BenchmarkConfig, what: str, size: Size, batch: int) -> Iterator[Job]:
    """Ours by every backend, then each peer's."""
    known = candidates(torch.device("cpu"))
    ours = [Backend.parse(text) for text in config.backends] or known
    plain = partial(_plain, what, config.weights)
    model = plain()
    channels = int(model.pretrained_cfg["input_size"][0])
    flops = 2 * macs(model, size, channels)

    def job(name: str, make: Callable[[], nn.Module], backend: Backend, tuned: bool = True) -> Job:
        return Job(
            name,
            make,
            folded=name == OURS,
            backend=backend,
            size=size,
            batch=batch,
            flops=flops,
            threads=config.threads,
            tuned=tuned,
            channels=channels,
        )

    yield from (job(OURS, plain, backend) for backend in ours)
    every = [backend for backend in known if backend.engine != "inductor" or config.compiled]
    for peer in config.against:
        if peer == "timm":
            yield from (job("timm", partial(_timm, timm_name(what)), backend) for backend in every)
        elif peer == "plain":
            yield from (job("plain", plain, backend) for backend in every if backend.engine in ("eager", "inductor"))
        else:
            own = [backend for backend in known if backend.engine == peer]
            yield from (job(peer, plain, backend, tuned=False) for backend in own)
            yield from (job(f"{peer}, tuned", plain, backend) for backend in own)


def ratios(model: str, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Our fastest row over each peer's fastest, in any precision and at equal precision: median and range of rounds."""
    peers = dict.fromkeys(row.job.name for row in rows if row.job.name != OURS)
    for peer in (*peers, *(["all peers"] if len(peers) > 1 else [])):
        for precision in (None, "fp32", "bf16"):
            ours = [r for r in rows if r.job.name == OURS and precision in (None, r.job.backend.precision)]
            theirs = [r for r in rows if r.job.name == peer or (peer == "all peers" and r.job.name != OURS)]
            theirs = [r for r in theirs if precision in (None, r.job.backend.precision)]
            if not ours or not theirs:
                continue
            a, b = (max(side, key=lambda row: row.images_per_s) for side in (ours, theirs))
            each = [x / y for x, y in zip(a.rounds, b.rounds, strict=True)]
            yield {
                "model": model,
                "against": peer + (f" in {precision}" if precision else ""),
                "ours": str(a.job.backend),
                "theirs": f"{b.job.name} {b.job.backend}",
                "ratio": round(statistics.median(each), 3),
                "low": round(min(each), 3),
                "high": round(max(each), 3),
            }


def timm_name(what: str) -> str:
    """timm's name for a model of ours, or of timm's own (``timm:NAME``). Raises UserError where timm has none."""
    what = what.removeprefix("timm:").removeprefix("timm/")
    tidy = aliases()
    names = [what, what.lower(), *(alias for alias, own in tidy.items() if own == what), tidy.get(what, what)]
    for name in names:
        for full in (name, f"{name}_224", f"{name}_patch16_224", name.lower()):
            if timm.is_model(full) and timm.models.model_entrypoint(full).__module__.startswith("timm."):
                return full
    raise UserError(f"timm has no {what}: use --against plain, the same model unfolded")


def _plain(what: str, weights: str | None) -> Backbone:
    is_run = weights is None and Path(what).is_dir()
    return load(what, weights or (None if is_run else UNTRAINED)).backbone.cpu()


def _timm(name: str) -> nn.Module:
    made: nn.Module = timm.create_model(name)
    return made


def _failure(model: str, each: Failed) -> dict[str, str]:
    return {"model": model, "name": each.job.name, "backend": str(each.job.backend), "reason": each.reason}
