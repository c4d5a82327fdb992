"""The loop. There is one: batch, step, record, evaluation, checkpoint, until the plan's steps are made."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anyres.flow import Batch
from anyres.training import checkpoint
from anyres.training.log import Bar, RunLog
from anyres.training.objectives import Objective
from anyres.training.parallel import check_alike, restart_advice
from anyres.training.plan import Plan
from anyres.training.state import State
from anyres.training.step import NonFiniteLoss, make_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Callbacks:
    """What the loop asks of others. ``evaluate`` scores a model, and the first score decides the best, the highest
    where ``higher_is_better``; ``names`` calls images by positions in the data set, for messages; ``settings`` are
    what a tracker is told of the run."""

    evaluate: Callable[[nn.Module], dict[str, float]]
    higher_is_better: bool = True
    names: Callable[[Tensor], str] = str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Stop:
    """Ctrl-C and SIGTERM ask the loop to stop after the step in hand; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Stop:
        with contextlib.suppress(ValueError):  # not the main thread: the caller keeps its own handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def train(
    accelerator: Accelerator,
    student: nn.Module,
    objective: Objective,
    state: State,
    batches: Iterator[Batch],
    plan: Plan,
    run: Path,
    callbacks: Callbacks,
) -> Literal["done", "stopped"]:
    """Train from ``state.progress.step`` to ``plan.steps``, leaving checkpoints and records in ``run``.

    ``student`` is the objective's, already prepared by ``accelerator``; ``batches`` starts at that step, on the device,
    normalized. Raises NonFiniteLoss before the update, with a checkpoint of the last good
    state written, unless the plan skips such steps.
    """
    progress, main = state.progress, accelerator.is_main_process
    check_alike(accelerator, progress.step, run)
    log = RunLog(run, progress.step, plan.train.trackers, callbacks.settings) if main else None
    if advice := restart_advice():
        logger.info(advice)
    bar = Bar(run.name, plan.steps, progress.step, plan.steps_per_epoch, shown=main)
    with Stop() as stop, contextlib.closing(log) if log else contextlib.nullcontext(), bar:
        clock = Clock(plan.steps - progress.step, accelerator.device)
        while progress.step < plan.steps:
            batch = clock.waiting(batches)
            try:
                shown = make_step(accelerator, student, objective, state, batch, plan)
                progress.skipped_in_row = 0
            except NonFiniteLoss as error:
                if plan.train.non_finite == "stop" or progress.skipped_in_row == plan.train.skip_at_most:
                    _save(accelerator, run, state)
                    raise
                progress.skipped, progress.skipped_in_row = progress.skipped + 1, progress.skipped_in_row + 1
                logger.info("%s: skipped, with the batch %s", error, callbacks.names(error.index))
                shown = {"skipped": torch.tensor(float(progress.skipped))}
            progress.step += 1
            progress.seconds += clock.step(len(batch.index) * accelerator.num_processes)
            progress.unreadable.update(batch.notes)
            if log and ("skipped" in shown or (progress.step - 1) % plan.train.log_every == 0):
                log.write(progress.step - 1, {name: float(value) for name, value in shown.items()}, clock.numbers())
            facts = f"loss {float(shown['loss']):.3f}" if "loss" in shown else "skipped"
            bar.show(progress.step, f"{facts}  {clock.facts()}")
            if advice := clock.advice():
                logger.info(advice)
            scores = _maybe_evaluate(state, plan, callbacks)
            if log and scores:
                log.write(progress.step - 1, {f"val/{name}": value for name, value in scores.items()})
            stopping = _agreed(accelerator, stop.asked)
            due = progress.step % plan.checkpoint_every == 0 or progress.step in (plan.steps, progress.best_step)
            if stopping or due:
                _save(accelerator, run, state)
            clock.restart()
            if stopping:
                break
    state.sync()
    return "done" if progress.step == plan.steps else "stopped"


def _maybe_evaluate(state: State, plan: Plan, callbacks: Callbacks) -> dict[str, float]:
    progress, every = state.progress, plan.train.eval_every * plan.steps_per_epoch
    last = progress.step == plan.steps
    if not last and (every == 0 or progress.step % every):
        return {}
    published, *others = state.versions
    scores = callbacks.evaluate(state.sync())
    if not scores:  # nothing is labelled
        return {}
    first = next(iter(scores.values()))
    better = first > progress.best if callbacks.higher_is_better else first < progress.best
    if better or progress.best_step < 0:
        progress.best, progress.best_step = first, progress.step
    progress.scores = {published: scores, **{name: callbacks.evaluate(state.sync(name)) for name in others}}
    return scores | {f"{name}/{key}": value for name in others for key, value in progress.scores[name].items()}


def _save(accelerator: Accelerator, run: Path, state: State) -> None:
    if accelerator.is_main_process or state.replica is not None:
        checkpoint.save(run, state, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()


def _agreed(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked to stop, so that all stop after the same step."""
    if accelerator.num_processes == 1:
        return asked
    flag = torch.tensor([float(asked)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


class Clock:
    """Images per second and the share of time spent waiting for data, smoothed over recent steps; the memory held; how
    long ``steps`` steps will take, with all that comes between them."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self._began = self._started = time.perf_counter()
        self._steps, self._made, self._device = steps, 0, device
        self._waited = 0.0
        self._rate = self._share = 0.0
        self._advised = False

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time it took counts as waiting."""
        before = time.perf_counter()
        batch = next(batches)
        self._waited = time.perf_counter() - before
        return batch

    def step(self, images: int) -> float:
        """Close a step of ``images`` images; returns its seconds."""
        now = time.perf_counter()
        took, self._started = now - self._started, now
        self._made += 1
        keep = 0.9 if self._rate else 0.0
        self._rate = keep * self._rate + (1 - keep) * images / took
        self._share = keep * self._share + (1 - keep) * self._waited / took
        return took

    def restart(self) -> None:
        """Leave what came since the step (evaluation, checkpoint) out of the rate."""
        self._started = time.perf_counter()

    def numbers(self) -> dict[str, float]:
        """What a picture of the run's speed needs."""
        speed = {"speed/images_per_s": self._rate, "speed/data_share": self._share}
        return speed | {"speed/memory_gib": memory_gib(self._device)}

    def facts(self) -> str:
        left = (time.perf_counter() - self._began) / self._made * (self._steps - self._made)
        return (
            f"{self._rate:.0f} images/s  data {self._share:.0%}  {memory_gib(self._device):.1f} GiB  "
            f"ETA {timedelta(seconds=round(left))}"
        )

    def advice(self) -> str:
        """Once, when after 50 steps more than half of the time goes to waiting for data: what to do about it."""
        if self._advised or self._made < 50 or self._share <= 0.5:
            return ""
        self._advised = True
        return (
            f"{self._share:.0%} of the time goes to waiting for images: raise data.workers (there are "
            f"{os.cpu_count()} processors), keep them decoded with data.cache_side, or decode less with data.dct=true"
        )


def memory_gib(device: torch.device) -> float:
    """The most that was allocated on ``device``; of a CPU, the most that this process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
