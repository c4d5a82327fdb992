"""The loop. There is one: batch, step, record, evaluation, checkpoint, until the plan's steps are made."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anyres.flow import Batch
from anyres.training.clock import Clock
from anyres.training.keeper import Keeper
from anyres.training.log import Bar, RunLog
from anyres.training.objectives import Objective
from anyres.training.parallel import check_alike, restart_advice
from anyres.training.plan import Plan
from anyres.training.state import Progress, State, ended_by
from anyres.training.step import NonFiniteLoss, make_step, rehearse, settle
from anyres.training.stop import Interrupted, Stop
from anyres.training.threads import choose, run_threads
from anyres.training.verdict import Reading, reads_late

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
    agree = Agreement(accelerator)
    with Stop() as stop, contextlib.closing(log) if log else contextlib.nullcontext(), bar, keeper, computing as counts:
        clock = Clock(plan.steps - progress.step, accelerator.device)
        stepper = Stepper(accelerator, student, objective, state, plan, callbacks, keeper, log, clock)
        scored = ""
        while not _is_over(progress, plan) or progress.unscored:
            if not progress.unscored:
                batch = clock.waiting(batches)
                if counts:
                    choose(progress, counts, partial(rehearse, accelerator, student, objective, state, batch, plan))
                    clock.restart()
                keeper.whole = False
                stepper.make(batch)
                progress.seconds += clock.step(len(batch.index) * accelerator.num_processes)
                progress.elapsed += _mean(accelerator, clock.lap(), plan)
                progress.unreadable.update(batch.notes)
                progress.unscored = _is_scored(progress.step, plan) or ended_by(progress, plan.train) == "time"
                keeper.whole = True
                is_logged = (progress.step - 1) % plan.train.log_every == 0
                if is_logged or bar.tells(progress.step):
                    stepper.tell(is_logged)
                if bar.is_due(progress.step):
                    bar.show(progress.step, f"{stepper.facts}  {scored}{clock.facts()}")
                if advice := clock.advice():
                    logger.info(advice)
            if progress.unscored:
                stepper.settle()
                keeper.check()
                scored = _record(log, _evaluate(accelerator, state, callbacks, stop), progress)
            stopping = agree(stop.asked is not None)
            due = progress.step % plan.checkpoint_every == 0 or progress.step == progress.best_step
            if stopping or due or _is_over(progress, plan):
                stepper.settle()
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
    if plan.train.eval_every is None:
        return False
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


class Stepper:
    """Makes steps, counts those that were not finite, and tells what became of them.

    ``facts``: the last loss that was read, or ``skipped``, for the bar.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        objective: Objective,
        state: State,
        plan: Plan,
        callbacks: Callbacks,
        keeper: Keeper,
        log: RunLog | None,
        clock: Clock,
    ) -> None:
        self._given = (accelerator, student, objective, state)
        self._state, self._plan, self._names = state, plan, callbacks.names
        self._keeper, self._log, self._clock = keeper, log, clock
        self._shown: dict[str, Tensor] = {}
        self.facts = ""

    def make(self, batch: Batch) -> None:
        """One step more. Raises NonFiniteLoss where a step that was not finite is not to be skipped."""
        progress = self._state.progress
        made = False
        while not made:
            try:
                self._shown = make_step(*self._given, batch, self._plan)
                made = True
            except NonFiniteLoss as error:
                made = error.step == progress.step
                self._skip(error)
        progress.step += 1

    def settle(self) -> None:
        """Learn what became of the last step. Raises as ``make``."""
        try:
            settle(self._state)
        except NonFiniteLoss as error:
            self._skip(error)

    def tell(self, is_logged: bool) -> None:
        """Read the last step's numbers, and record them if ``is_logged``: the host waits for the device."""
        self.settle()
        if not self._shown:
            return
        values = {name: float(value) for name, value in self._shown.items()}
        self.facts = f"loss {values['loss']:.3f}"
        if self._log and is_logged:
            self._log.write(self._state.progress.step - 1, values, self._clock.numbers())

    def _skip(self, error: NonFiniteLoss) -> None:
        """Count a step that was not made: this one, or the one before. Raises ``error`` where the plan does not skip
        it, and NonFiniteWeights where no step can be made any more."""
        progress, train = self._state.progress, self._plan.train
        after, progress.step = progress.step, error.step
        self._keeper.check()
        if train.non_finite == "stop" or progress.skipped_in_row == train.skip_at_most:
            progress.unscored = False
            self._keeper.save()
            raise error
        progress.step = after
        progress.skipped, progress.skipped_in_row = progress.skipped + 1, progress.skipped_in_row + 1
        logger.info("%s: skipped, with the batch %s", error, self._names(error.index))
        self._shown, self.facts = {}, "skipped"
        if self._log:
            self._log.write(error.step, {"skipped": float(progress.skipped)}, self._clock.numbers())


class Agreement:
    """Whether any process was asked to stop, so that all stop after the same step: this one, or where the host would
    wait for the device the next."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._before: Reading | None = None

    def __call__(self, asked: bool) -> bool:
        accelerator = self._accelerator
        if accelerator.num_processes == 1:
            return asked
        flag = torch.tensor([float(asked)], device=accelerator.device)
        now = Reading(accelerator.reduce(flag, "sum")[0] > 0)
        if not reads_late(accelerator.device):
            return now.value()
        before, self._before = self._before, now
        return before is not None and before.value()
