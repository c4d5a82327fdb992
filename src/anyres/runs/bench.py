"""``anyres bench model``: the speed of models here, by engine, precision, size and batch, beside that of peers."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from rich import get_console
from rich.table import Table
from torch import nn

from anyres.cli.console import stdout as screen
from anyres.config import UserError
from anyres.deploy.engines.backend import Choice, candidates
from anyres.deploy.predictor import machine
from anyres.deploy.timing import Failed, Job, Row, measure
from anyres.evaluation.plots.bar_chart import bars
from anyres.evaluation.speed import macs
from anyres.flow import Size
from anyres.models.zoo import ALIASES
from anyres.runs.opened import UNTRAINED, load

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
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked: models or runs by ``sizes`` by ``batches``; ``backends`` such as openvino:bf16 (empty: all that
    this machine has), ``against`` peers; ``rounds`` of ``seconds`` each, all in turn, with so many
    ``processes`` one after another. ``compiled``: PyTorch peers also by its compiler, which takes a minute each."""

    models: Sequence[str]
    weights: str | None
    sizes: Sequence[Size]
    batches: Sequence[int]
    backends: Sequence[str]
    against: Sequence[str]
    rounds: int
    seconds: float
    threads: int | None
    compiled: bool = True
    processes: int = 1


def bench_models(question: Question, into: Path | None, picture: Path | None) -> dict[str, Any]:
    """Measure, print a table and each ratio, write the JSON and the picture; the facts. Raises UserError."""
    facts: dict[str, Any] = {"torch": torch.__version__, "machine": machine(torch.device("cpu"))}
    facts |= {"threads": question.threads or torch.get_num_threads()}
    facts |= {"matrix GFLOP/s": [], "rows": [], "ratios": [], "failed": []}
    console = get_console()
    for what, size, batch in product(question.models, question.sizes, question.batches):
        jobs = list(jobs_for(question, what, size, batch))
        with console.status(what) as status:
            told = partial(_tell, status, f"{what} at {size} px, {batch} at a time")
            rows, failed, matrix = measure(
                jobs, rounds=question.rounds, seconds=question.seconds, processes=question.processes, say=told
            )
        for each in failed:
            log.info(f"{each.job.name}, {each.job.choice}, is left out: {each.reason}")
        rows.sort(key=lambda row: -row.images_per_s)
        screen().print(_table(what, size, batch, rows, matrix))
        found = list(ratios(what, rows))
        for ratio in found:
            screen().print(
                f"{what} at {size} px, {batch} at a time: {ratio['ratio']:.2f} times {ratio['against']} "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}; {ratio['ours']} against {ratio['theirs']})"
            )
        facts["matrix GFLOP/s"].append({name: round(rate, 1) for name, rate in matrix.items()})
        facts["rows"] += [{"model": what} | row.facts() for row in rows]
        facts["ratios"] += [{"size": str(size), "batch": batch} | ratio for ratio in found]
        facts["failed"] += [_failure(what, each) for each in failed]
        if into:
            into.parent.mkdir(parents=True, exist_ok=True)
            into.write_text(json.dumps(facts, indent=1) + "\n")
    if picture:
        shown = [
            (
                f"{row['model']} at {row['size']} px, {row['batch']} at a time",
                f"{row['name']} {row['backend']}",
                row["images/s"],
            )
            for row in facts["rows"]
        ]
        bars(shown, picture, "Images per second")
    return facts


def jobs_for(question: Question, what: str, size: Size, batch: int) -> Iterator[Job]:
    """Ours by every backend, then each peer's."""
    device = torch.device("cpu")
    known = candidates(device, ("fp32", "bf16"))
    ours = [Choice.parse(text) for text in question.backends] or known
    plain = partial(_plain, what, question.weights)
    flops = 2 * macs(plain(), size)

    def job(name: str, make: partial[nn.Module], choice: Choice, tuned: bool = True) -> Job:
        return Job(name, make, name == OURS, choice, size, batch, flops, question.threads, tuned=tuned)

    yield from (job(OURS, plain, choice) for choice in ours)
    every = [choice for choice in known if choice.engine != "inductor" or question.compiled]
    for peer in question.against:
        if peer == "timm":
            yield from (job("timm", partial(_timm, twin(what)), choice) for choice in every)
        elif peer == "plain":
            yield from (job("plain", plain, choice) for choice in every if choice.engine in ("eager", "inductor"))
        else:
            own = [choice for choice in known if choice.engine == peer]
            yield from (job(peer, plain, choice, tuned=False) for choice in own)
            yield from (job(f"{peer}, tuned", plain, choice) for choice in own)


def ratios(model: str, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Our fastest row over each peer's fastest, in any precision and at equal precision: median and range of rounds."""
    peers = dict.fromkeys(row.job.name for row in rows if row.job.name != OURS)
    for peer in (*peers, *(["all peers"] if len(peers) > 1 else [])):
        for precision in (None, "fp32", "bf16"):
            ours = [r for r in rows if r.job.name == OURS and precision in (None, r.job.choice.precision)]
            theirs = [r for r in rows if r.job.name == peer or (peer == "all peers" and r.job.name != OURS)]
            theirs = [r for r in theirs if precision in (None, r.job.choice.precision)]
            if not ours or not theirs:
                continue
            a, b = (max(side, key=lambda row: row.images_per_s) for side in (ours, theirs))
            each = [x / y for x, y in zip(a.rounds, b.rounds, strict=True)]
            yield {
                "model": model,
                "against": peer + (f" in {precision}" if precision else ""),
                "ours": str(a.job.choice),
                "theirs": f"{b.job.name} {b.job.choice}",
                "ratio": round(statistics.median(each), 3),
                "low": round(min(each), 3),
                "high": round(max(each), 3),
            }


def twin(what: str) -> str:
    """timm's name for a model of ours. Raises UserError where timm has none."""
    names = [what, what.lower(), *(alias for alias, own in ALIASES.items() if own == what), ALIASES.get(what, what)]
    for name in names:
        for full in (name, f"{name}_224", f"{name}_patch16_224", name.lower()):
            if timm.is_model(full) and timm.models.model_entrypoint(full).__module__.startswith("timm."):
                return full
    raise UserError(f"timm has no {what}: use --against plain, the same model unfolded")


def _plain(what: str, weights: str | None) -> nn.Module:
    is_run = weights is None and Path(what).is_dir()
    return load(what, weights or (None if is_run else UNTRAINED)).model.cpu()


def _timm(name: str) -> nn.Module:
    made: nn.Module = timm.create_model(name)
    return made


def _tell(status: Any, prefix: str, said: str) -> None:
    status.update(f"{prefix}: {said}")


def _failure(model: str, each: Failed) -> dict[str, str]:
    return {"model": model, "name": each.job.name, "backend": str(each.job.choice), "reason": each.reason}


def _table(what: str, size: Size, batch: int, rows: Sequence[Row], matrix: dict[str, float]) -> Table:
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in matrix.items())
    table = Table(
        title=f"{what} at {size} px, {batch} at a time; matrix product here: {rates} GFLOP/s",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for column in ("form", "backend"):
        table.add_column(column)
    for column in ("images/s", "p50 ms", "p99 ms", "peak MiB", "GFLOP/s", "of the matrix rate"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.job.name,
            str(row.job.choice),
            f"{row.images_per_s:.1f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.peak_mib:.0f}",
            f"{row.gflops_per_s:.0f}",
            f"{100 * row.share:.0f} %",
        )
    return table
