"""The loop. There is one: batch, step, record, evaluation, checkpoint, until the plan's steps are made."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anyres.config import first_line
from anyres.flow import Batch
from anyres.ops.processors import peak_memory, processors
from anyres.training import checkpoint
from anyres.training.log import Bar, RunLog
from anyres.training.objectives import Objective
from anyres.training.parallel import check_alike, restart_advice
from anyres.training.plan import Plan
from anyres.training.state import Progress, State, ended_by, first_non_finite
from anyres.training.step import NonFiniteLoss, NonFiniteWeights, all_agree, make_step, rehearse
from anyres.training.stop import Interrupted, Stop
from anyres.training.threads import choose, run_threads

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


def train(
    accelerator: Accelerator,
    student: nn.Module,
    objective: Objective,
    state: State,
    batches: Iterator[Batch],
    plan: Plan,
    run: Path,
    callbacks: Callbacks,
) -> signal.Signals | None:
    """Train from ``state.progress.step`` to ``plan.steps``, leaving checkpoints and records in ``run``.

    ``student`` is the objective's, already prepared by ``accelerator``; ``batches`` starts at that step, on the device,
    normalized. Returns None when all is done (``ended_by`` may say so earlier), else the signal that asked to stop,
    after a checkpoint. Raises NonFiniteLoss and NonFiniteWeights, with the last good state in a checkpoint. Whatever
    else is raised between two steps, as by a loader that dies, leaves a checkpoint of the last whole step.
    """
    progress, main = state.progress, accelerator.is_main_process
    check_alike(accelerator, progress.step, run)
    log = RunLog(run, progress.step, plan.train.trackers, callbacks.settings, progress.unscored) if main else None
    if advice := restart_advice():
        logger.info(advice)
    bar = Bar(run.name, plan.steps, progress.step, plan.steps_per_epoch, shown=main)
    keeper = Keeper(accelerator, run, state, log)
    computing = run_threads(accelerator, progress, plan.train.threads)
    with Stop() as stop, contextlib.closing(log) if log else contextlib.nullcontext(), bar, keeper, computing as counts:
        clock = Clock(plan.steps - progress.step, accelerator.device)
        scored = ""
        while not _is_over(progress, plan) or progress.unscored:
            if not progress.unscored:
                batch = clock.waiting(batches)
                if counts:
                    choose(progress, counts, partial(rehearse, accelerator, student, objective, state, batch, plan))
                    clock.restart()
                keeper.whole = False
                try:
                    shown = make_step(accelerator, student, objective, state, batch, plan)
                    progress.skipped_in_row = 0
                except NonFiniteLoss as error:
                    shown = _skip(error, keeper, state, plan, callbacks)
                progress.step += 1
                progress.seconds += clock.step(len(batch.index) * accelerator.num_processes)
                progress.elapsed += _mean(accelerator, clock.lap(), plan)
                progress.unreadable.update(batch.notes)
                progress.unscored = _is_scored(progress.step, plan) or ended_by(progress, plan.train) == "time"
                keeper.whole = True
                if log and ("skipped" in shown or (progress.step - 1) % plan.train.log_every == 0):
                    log.write(progress.step - 1, {name: float(value) for name, value in shown.items()}, clock.numbers())
                facts = f"loss {float(shown['loss']):.3f}" if "loss" in shown else "skipped"
                bar.show(progress.step, f"{facts}  {scored}{clock.facts()}")
                if advice := clock.advice():
                    logger.info(advice)
            if progress.unscored:
                keeper.check()
                scored = _record(log, _evaluate(accelerator, state, callbacks, stop), progress)
            stopping = _agreed(accelerator, stop.asked is not None)
            due = progress.step % plan.checkpoint_every == 0 or progress.step == progress.best_step
            if stopping or due or _is_over(progress, plan):
                keeper.check()
                keeper.save()
            clock.restart()
            if stopping:
                break
    state.sync()
    if progress.unscored or not _is_over(progress, plan):
        return stop.asked or signal.SIGTERM  # of several processes another may have been asked
    return None


def _record(log: RunLog | None, scores: Mapping[str, float], progress: Progress) -> str:
    """Write and say what was scored after the last step; the headline metric, for the bar, as ``top1 0.667  ``."""
    if not log or not scores:
        return ""
    log.write(progress.step - 1, {f"val/{name}": value for name, value in scores.items()})
    first, value = next(iter(scores.items()))
    start = f"{first}/"
    sizes = [f"{each:.3f} at {name.removeprefix(start)}" for name, each in scores.items() if name.startswith(start)]
    is_best = progress.best_step == progress.step
    best = "the best so far" if is_best else f"the best was {progress.best:.3f} after step {progress.best_step}"
    logger.info("step %d: held-out %s %.3f (%s)", progress.step, first, value, "; ".join([*sizes, best]))
    return f"{first} {value:.3f}  "


def _skip(error: NonFiniteLoss, keeper: Keeper, state: State, plan: Plan, callbacks: Callbacks) -> dict[str, Tensor]:
    """Count the step that was not made; what to show of it. Raises ``error`` where the plan does not skip it, and
    NonFiniteWeights where no step can be made any more."""
    progress = state.progress
    keeper.check()
    if plan.train.non_finite == "stop" or progress.skipped_in_row == plan.train.skip_at_most:
        keeper.save()
        raise error
    progress.skipped, progress.skipped_in_row = progress.skipped + 1, progress.skipped_in_row + 1
    logger.info("%s: skipped, with the batch %s", error, callbacks.names(error.index))
    return {"skipped": torch.tensor(float(progress.skipped))}


def _is_over(progress: Progress, plan: Plan) -> bool:
    """Whether no step is to be made any more."""
    return progress.step >= plan.steps or bool(ended_by(progress, plan.train))


def _mean(accelerator: Accelerator, seconds: float, plan: Plan) -> float:
    """Seconds as all processes agree on them, where these decide when the run ends."""
    if accelerator.num_processes == 1 or plan.train.max_minutes is None:
        return seconds
    return float(accelerator.reduce(torch.tensor([seconds], device=accelerator.device), "mean").item())


def _is_scored(step: int, plan: Plan) -> bool:
    """Whether the held-out images are scored after so many steps."""
    every = plan.train.eval_every * plan.steps_per_epoch
    return step == plan.steps or (every > 0 and step % every == 0)


def _evaluate(accelerator: Accelerator, state: State, callbacks: Callbacks, stop: Stop) -> dict[str, float]:
    """The scores of what is published, and whether they are the best; {} where nothing is labelled.

    One process alone leaves it when it is asked to stop; the state is then ``unscored`` still.
    """
    progress, alone = state.progress, accelerator.num_processes == 1
    published, *others = state.versions
    try:
        with stop.leaving() if alone else contextlib.nullcontext():
            scores = callbacks.evaluate(state.sync())
            more = {name: callbacks.evaluate(state.sync(name)) for name in others} if scores else {}
    except Interrupted:
        return {}
    progress.unscored = False
    if not scores:  # nothing is labelled
        return {}
    first = next(iter(scores.values()))
    better = first > progress.best if callbacks.higher_is_better else first < progress.best
    progress.scores = {published: scores, **more}
    progress.scored, progress.since_best = progress.scored + 1, progress.since_best + 1
    if better or progress.best_step < 0:
        progress.best, progress.best_step = first, progress.step
        progress.best_scores, progress.since_best = progress.scores, 0
    return scores | {f"{name}/{key}": value for name in others for key, value in more[name].items()}


class Keeper:
    """Writes the checkpoints of one run. As a context manager it saves the last whole step whatever ends the loop.

    ``whole``: the state is that after a step, not within one.
    """

    def __init__(self, accelerator: Accelerator, run: Path, state: State, log: RunLog | None) -> None:
        self._accelerator, self._run, self._state, self._log = accelerator, run, state, log
        self._saved = (state.progress.step, state.progress.unscored)
        self.whole = True

    def check(self) -> None:
        """Raises NonFiniteWeights, on every process alike, where a weight or its average is not finite."""
        name = first_non_finite(self._state)
        here = torch.tensor(name is None, device=self._accelerator.device)
        if not all_agree(self._accelerator, here):
            raise NonFiniteWeights(self._state.progress.step, name or "of another process")

    def save(self) -> None:
        """By all processes at once."""
        accelerator = self._accelerator
        if accelerator.is_main_process or self._state.replica is not None:
            self._write()
        accelerator.wait_for_everyone()

    def _write(self) -> None:
        if self._log:
            self._log.sync()
        checkpoint.save(self._run, self._state, write=self._accelerator.is_main_process)
        self._saved = (self._state.progress.step, self._state.progress.unscored)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        progress = self._state.progress
        new = self.whole and progress.step > 0 and (progress.step, progress.unscored) != self._saved
        if error is None or not new or not self._accelerator.is_main_process or self._state.replica is not None:
            return  # of a model that is split over processes all would have to take part
        if first_non_finite(self._state) is None:
            try:
                self._write()
                logger.info("the state after step %d is saved", progress.step)
            except Exception as second:  # such as a full disk, which may be what has ended the loop
                logger.warning("the state after step %d cannot be saved: %s", progress.step, first_line(second))


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
        self._began = self._started = self._lap = time.perf_counter()
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

    def lap(self) -> float:
        """Seconds since the last lap, or since the start: all that came between, too."""
        now = time.perf_counter()
        took, self._lap = now - self._lap, now
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
            f"{processors()} processors), keep them decoded with data.cache_side, or decode less with data.dct=true"
        )


def memory_gib(device: torch.device) -> float:
    """The most that was allocated on ``device``; of a CPU, the most that this process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    return peak_memory() / 2**30
