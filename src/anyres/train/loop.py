"""The loop. There is one.

A step: seed it, set the rate, run and back-propagate the objective's terms one by one, check, update, average.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anyres.config import config
from anyres.flow import Batch
from anyres.train import checkpoint
from anyres.train.log import Bar, RunLog
from anyres.train.objective import ObjectiveConfig, Teacher, terms
from anyres.train.optim import OptimConfig, learning_rate, set_rates, weight_decay
from anyres.train.parallel import Precision
from anyres.train.state import State, seed_step


@config
class TrainConfig:
    """``epochs`` over the training images, every view of an image counting as one visit. ``ema_decay``: null keeps no
    moving average. ``eval_every`` epochs the held-out images are scored (0: only at the end). ``checkpoint_every``
    steps a checkpoint is written (null: every epoch, at most 500 steps apart)."""

    epochs: int = 100
    seed: int = 0
    precision: Precision = "auto"
    ema_decay: float | None = 0.999
    channels_last: bool = False
    eval_every: int = 10
    checkpoint_every: int | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        counts = {"epochs": self.epochs, "checkpoint_every": self.checkpoint_every, "log_every": self.log_every}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"train.{name}={value} must be 1 or more")
        if min(self.eval_every, self.seed) < 0:
            raise ValueError(f"train.eval_every={self.eval_every} and train.seed={self.seed} must be 0 or more")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay} must be 0 or more and below 1, or null for none")


@dataclass(frozen=True)
class Plan:
    """What the configurations come to for this data set: counts, peak rate and the configurations themselves."""

    steps: int
    steps_per_epoch: int
    batch_size: int
    train: TrainConfig
    optim: OptimConfig
    objective: ObjectiveConfig

    @property
    def checkpoint_every(self) -> int:
        return self.train.checkpoint_every or min(self.steps_per_epoch, 500)

    def rate(self, step: int) -> float:
        """The learning rate of ``step``."""
        return learning_rate(step, self.optim.peak_lr(self.batch_size), self.optim, self.steps_per_epoch, self.steps)

    def decay(self, step: int) -> float:
        """The weight decay of ``step``."""
        return weight_decay(step, self.optim, self.steps)


@dataclass(frozen=True)
class Callbacks:
    """What the loop asks of others. ``evaluate`` scores a model, and its ``"top1"`` decides the best; ``teacher``
    answers to a view, where there is one."""

    evaluate: Callable[[nn.Module], dict[str, float]]
    teacher: Teacher | None = None


class NonFiniteLoss(Exception):
    """The loss or its gradient is not finite; ``index`` (b,) names the batch's positions in the data set."""

    def __init__(self, step: int, index: Tensor) -> None:
        super().__init__(f"loss or gradient is not finite at step {step}")
        self.step, self.index = step, index


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
    state: State,
    batches: Iterator[Batch],
    plan: Plan,
    run: Path,
    callbacks: Callbacks,
    title: str,
) -> Literal["done", "stopped"]:
    """Train from ``state.progress.step`` to ``plan.steps``, leaving checkpoints and records in ``run``.

    ``student`` wraps ``state.model`` (see objective.Student), already prepared by ``accelerator``; ``batches`` starts
    at that step, on the device, normalised.
    Raises NonFiniteLoss before the update, with a checkpoint of the last good state written.
    """
    from rich.console import Console

    progress, main = state.progress, accelerator.is_main_process
    log = RunLog(run, progress.step) if main else None
    console = Console(stderr=True, quiet=not main)
    bar = Bar(console, title, plan.steps, progress.step, plan.steps_per_epoch)
    with Stop() as stop, contextlib.closing(log) if log else contextlib.nullcontext(), bar:
        clock = Clock()
        while progress.step < plan.steps:
            batch = clock.waiting(batches)
            try:
                shown = make_step(accelerator, student, state, batch, plan, callbacks.teacher)
            except NonFiniteLoss:
                _save(accelerator, run, state)
                raise
            progress.step += 1
            progress.seconds += clock.step(len(batch.index) * accelerator.num_processes)
            progress.unreadable.update(batch.notes)
            if log and (progress.step - 1) % plan.train.log_every == 0:
                log.write(progress.step - 1, {name: float(value) for name, value in shown.items()})
            bar.show(progress.step, f"loss {float(shown['loss']):.3f}  {clock.facts()}")
            scores = _maybe_evaluate(state, plan, callbacks.evaluate)
            if log and scores:
                log.write(progress.step - 1, {f"val/{name}": value for name, value in scores.items()})
            stopping = _agreed(accelerator, stop.asked)
            if stopping or progress.step % plan.checkpoint_every == 0 or progress.step == plan.steps:
                _save(accelerator, run, state)
            clock.restart()
            if stopping:
                break
    return "done" if progress.step == plan.steps else "stopped"


def make_step(
    accelerator: Accelerator,
    student: nn.Module,
    state: State,
    batch: Batch,
    plan: Plan,
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    """One update from one batch; returns the detached numbers to show. Raises NonFiniteLoss before the update."""
    step = state.progress.step
    seed_step(plan.train.seed, step, accelerator.process_index)
    rate = plan.rate(step)
    set_rates(state.optimizer, rate, plan.decay(step))
    state.optimizer.zero_grad(set_to_none=True)
    student.train()
    statistics = [buffer.clone() for buffer in state.model.buffers()]  # a forward pass changes batch norm's
    total = torch.zeros((), device=accelerator.device)
    shown: dict[str, Tensor] = {}
    made = terms(student, batch, plan.objective, teacher)
    for i in range(len(batch.views)):  # gradients are exchanged between processes once, with the last view
        with accelerator.no_sync(student) if i + 1 < len(batch.views) else contextlib.nullcontext():
            term = next(made)
            accelerator.backward(term.loss)
        total += term.loss.detach()
        shown |= term.shown
    norm = accelerator.clip_grad_norm_(student.parameters(), plan.optim.clip_norm or math.inf)
    finite = torch.isfinite(total) if accelerator.scaler is not None else torch.isfinite(total + norm)
    if not bool(finite):
        for buffer, before in zip(state.model.buffers(), statistics, strict=True):
            buffer.copy_(before)
        raise NonFiniteLoss(step, batch.index)
    state.optimizer.step()
    if state.ema is not None:
        state.ema.update(state.model, step=step + 1)
    state.progress.images += len(batch.index) * accelerator.num_processes
    state.progress.pixels += sum(v.shape[0] * v.shape[2] * v.shape[3] for v in batch.views) * accelerator.num_processes
    shown = {"loss": total} | shown
    if accelerator.num_processes > 1:
        shown = dict(zip(shown, accelerator.reduce(torch.stack(list(shown.values())), "mean"), strict=True))
    return shown | {"lr": torch.tensor(rate), "grad_norm": norm}


def _maybe_evaluate(state: State, plan: Plan, evaluate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
    progress, every = state.progress, plan.train.eval_every * plan.steps_per_epoch
    last = progress.step == plan.steps
    if not last and (every == 0 or progress.step % every):
        return {}
    scores = evaluate(state.evaluated)
    if scores and scores["top1"] > progress.best:
        progress.best, progress.best_step = scores["top1"], progress.step
    return scores


def _save(accelerator: Accelerator, run: Path, state: State) -> None:
    if accelerator.is_main_process:
        checkpoint.save(run, state)
    accelerator.wait_for_everyone()


def _agreed(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked to stop, so that all stop after the same step."""
    if accelerator.num_processes == 1:
        return asked
    flag = torch.tensor([float(asked)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


class Clock:
    """Images per second and the share of time spent waiting for data, smoothed over recent steps."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._rate = self._share = 0.0

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
        keep = 0.9 if self._rate else 0.0
        self._rate = keep * self._rate + (1 - keep) * images / took
        self._share = keep * self._share + (1 - keep) * self._waited / took
        return took

    def restart(self) -> None:
        """Leave what came since the step (evaluation, checkpoint) out of the rate."""
        self._started = time.perf_counter()

    def facts(self) -> str:
        return f"{self._rate:.0f} images/s  data {self._share:.0%}"
