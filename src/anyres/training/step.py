"""One step of training: seed it, set the rates, back-propagate the objective's terms one by one, check, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anyres.config import UserError
from anyres.flow import Batch
from anyres.training.objectives import Objective, Term
from anyres.training.optim import clip_each, set_rates
from anyres.training.plan import Plan
from anyres.training.shard import is_split, whole
from anyres.training.state import State, seed_step, update_ema
from anyres.training.verdict import Verdict, plain, put_back, reads_late, update_if


class NonFiniteLoss(Exception):
    """The loss or its gradient is not finite; ``index`` (b,) names the batch's positions in the data set."""

    def __init__(self, step: int, index: Tensor) -> None:
        super().__init__(f"loss or gradient is not finite at step {step}")
        self.step, self.index = step, index


class NonFiniteWeights(Exception):
    """A weight or its moving average, such as ``name``, is not finite, or too large, after ``step`` steps."""

    def __init__(self, step: int, name: str) -> None:
        super().__init__(f"the weights are not finite after step {step} ({name})")
        self.step = step


def make_step(
    accelerator: Accelerator, student: nn.Module, objective: Objective, state: State, batch: Batch, plan: Plan
) -> dict[str, Tensor]:
    """One update from one batch; returns the detached numbers to show.

    ``student`` is the objective's, prepared by ``accelerator``. Raises NonFiniteLoss before the update, on every
    process alike, with the state as it was; UserError for an objective without terms. Where the host would wait for
    the device (``reads_late``) the update is made, and taken back there if it was not finite; what is raised then, in
    the next step before its update or by ``settle``, is of the step before, again with the state as it was.
    """
    step = state.progress.step
    parts = state.parts_of(student)
    seed_step(plan.train.seed, step, accelerator.process_index, accelerator.device)
    set_rates(state.optimizer, plan.rate(step), plan.decay(step))
    plain(state.optimizer).zero_grad(set_to_none=True)
    parts.set_to_train()
    objective.begin(plan, step)
    statistics = [buffer.clone() for buffer in parts.statistics()]  # a forward pass changes batch norm's
    shown = back_propagate(accelerator, student, objective, batch, plan.train.accumulate)
    buffers = parts.statistics()
    norm = clip_norm(accelerator, parts.parameters, plan.optim.clip_norm)
    total = shown["loss"]
    finite = torch.isfinite(total) if accelerator.scaler is not None else torch.isfinite(total + norm)
    finite = all_agree(accelerator, finite)
    late = accelerator.scaler is None and reads_late(accelerator.device)
    try:
        if late:
            settle(state)
        elif not finite:
            if accelerator.scaler is not None:
                accelerator.scaler.update()  # else it would not unscale again
            raise NonFiniteLoss(step, batch.index)
    except NonFiniteLoss:
        for buffer, before in zip(buffers, statistics, strict=True):
            buffer.copy_(before)
        raise
    if plan.optim.clip_each:
        clip_each(parts.parameters, plan.optim.clip_each)
    objective.hold(plan, step)
    change = partial(update, accelerator, objective, state, plan)
    images = len(batch.index) * accelerator.num_processes
    pixels = sum(v.shape[0] * v.shape[2] * v.shape[3] for v in batch.views) * accelerator.num_processes
    if late:
        undo = update_if(finite, state, change)
        put_back(finite, buffers, statistics)
        state.verdict = Verdict(step, batch.index, finite, partial(_uncount, state, images, pixels, undo))
    else:
        change()
        state.progress.skipped_in_row = 0
    state.progress.images += images
    state.progress.pixels += pixels
    if accelerator.num_processes > 1:
        shown = dict(zip(shown, accelerator.reduce(torch.stack(list(shown.values())), "mean"), strict=True))
    return shown | {"lr": torch.tensor(plan.rate(step)), "grad_norm": norm}


def update(accelerator: Accelerator, objective: Objective, state: State, plan: Plan) -> None:
    """Move the weights, then what follows them. Raises NonFiniteWeights for a learning rate beyond float32."""
    step = state.progress.step
    optimizer = plain(state.optimizer) if accelerator.scaler is None else state.optimizer
    try:
        optimizer.step()
    except RuntimeError as error:
        if "without overflow" in str(error):
            raise NonFiniteWeights(step + 1, f"learning rate {plan.rate(step):.3g}") from None
        raise
    objective.follow(plan, step, accelerator)
    if state.ema is not None:
        update_ema(state.ema, state.model, step)


def settle(state: State) -> None:
    """Learn whether the last step was finite, where that is not known yet. Raises NonFiniteLoss of that step."""
    verdict, state.verdict = state.verdict, None
    if verdict is None:
        return
    if not verdict.is_finite():
        raise NonFiniteLoss(verdict.step, verdict.index)
    state.progress.skipped_in_row = 0


def _uncount(state: State, images: int, pixels: int, undo: Callable[[], None]) -> None:
    """Take back what the host has counted of a step that the device has not made."""
    state.progress.images -= images
    state.progress.pixels -= pixels
    undo()


def rehearse(
    accelerator: Accelerator, student: nn.Module, objective: Objective, state: State, batch: Batch, plan: Plan
) -> None:
    """Compute what ``make_step`` would before the update, and leave everything as it was: a step to be timed."""
    step = state.progress.step
    parts = state.parts_of(student)
    seed_step(plan.train.seed, step, accelerator.process_index, accelerator.device)
    parts.set_to_train()
    objective.begin(plan, step)
    before = [buffer.clone() for buffer in parts.statistics()]
    try:
        back_propagate(accelerator, student, objective, batch, plan.train.accumulate)
    finally:
        for buffer, kept in zip(parts.statistics(), before, strict=True):
            buffer.copy_(kept)
        state.optimizer.zero_grad(set_to_none=True)


def back_propagate(
    accelerator: Accelerator, student: nn.Module, objective: Objective, batch: Batch, accumulate: int
) -> dict[str, Tensor]:
    """Add the gradients of the batch's loss, part by part and view by view; ``loss`` and its parts, detached.

    Raises UserError for an objective that yields no term, or, of several processes, none for the last view.
    """
    passes = Passes(accelerator, student, len(batch.views))
    parts = list(split(batch, accumulate))
    for p, part in enumerate(parts):
        passes.start(share=len(part.index) / len(batch.index), last=p + 1 == len(parts))
        for term in objective.terms(passes, part):
            passes.add(term)
        passes.flush()
        if not passes.terms:
            raise UserError(f"objective {objective.name!r} yields no term for a batch: there is nothing to minimize")
    if not passes.exchange():
        raise UserError(
            f"objective {objective.name!r} yields no term for the last view, with which {accelerator.num_processes} "
            "processes exchange gradients: yield one, as `0 * output.logits.sum()`"
        )
    return passes.shown


class Passes:
    """The student, as an objective calls it: what was yielded before is back-propagated before the next pass begins.

    Between processes gradients are exchanged once, with the last view of the last part; or at the end, where an
    objective made fewer passes than there are views.
    """

    def __init__(self, accelerator: Accelerator, student: nn.Module, views: int) -> None:
        self.accelerator, self.student, self.views = accelerator, student, views
        self.shown = {"loss": torch.zeros((), device=accelerator.device)}
        self.exchanged = self.awaited = False

    def start(self, share: float, last: bool) -> None:
        """Begin a part of the batch with this ``share`` of its images."""
        self.share, self.last = share, last
        self.made, self.terms = 0, 0
        self.pending: list[Tensor] = []

    def __call__(self, view: Tensor, *beside: Any) -> Any:
        self.flush()
        self.made += 1
        self.awaited = self._is_last and torch.is_grad_enabled()
        with self._exchanging():
            return self.student(view, *beside)

    def add(self, term: Term) -> None:
        """Keep a term until the next pass, and show it."""
        self.terms += 1
        self.pending.append(term.loss)
        for name, value in {"loss": term.loss.detach(), **term.logged}.items():
            weighted = value * self.share if self.share != 1 else value
            self.shown[name] = self.shown[name] + weighted if name in self.shown else weighted

    def flush(self) -> None:
        """Back-propagate the terms that were added since the last pass."""
        if self.pending:
            loss = sum(self.pending[1:], self.pending[0])
            self.pending = []
            loss = loss * self.share if self.share != 1 else loss
            with self._exchanging():
                if self.accelerator.scaler is not None:
                    self.accelerator.backward(loss)
                else:
                    torch.autograd.backward(loss)
            self.exchanged = self.exchanged or self._is_last

    def exchange(self) -> bool:
        """Take the mean of the gradients over all processes, unless a backward pass did.

        False where one was to do it and never came: DistributedDataParallel would wait for it at the next step.
        """
        if self.accelerator.num_processes == 1 or self.exchanged:
            return True
        for parameter in self.student.parameters():
            if parameter.grad is not None and not is_split(parameter.grad):
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return not self.awaited

    @property
    def _is_last(self) -> bool:
        return self.last and self.made >= self.views

    def _exchanging(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._is_last else self.accelerator.no_sync(self.student)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch's images in ``parts`` parts of about one size (fewer where there are fewer images)."""
    count = len(batch.index)
    if parts == 1:
        yield batch
        return
    most = -(-count // parts)
    for first in range(0, count, most):
        part = slice(first, min(first + most, count))
        draw = None if batch.draw is None else batch.draw[part]
        views = tuple(view[part] for view in batch.views)
        yield replace(batch, views=views, targets=batch.targets.part(part), index=batch.index[part], draw=draw)


def clip_norm(accelerator: Accelerator, parameters: Sequence[nn.Parameter], most: float | None) -> Tensor:
    """The norm of all gradients together, which are scaled down where it is above ``most``."""
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    if accelerator.scaler is not None or any(map(is_split, moved)):
        return whole(accelerator.clip_grad_norm_(moved, most or math.inf))
    norm = nn.utils.get_total_norm([parameter.grad for parameter in moved if parameter.grad is not None])
    if most:
        nn.utils.clip_grads_with_norm_(moved, most, norm)
    return norm


def all_agree(accelerator: Accelerator, here: Tensor) -> Tensor:
    """Whether ``here`` (a truth value) holds on every process, so that all do the same; a truth value there too."""
    if accelerator.num_processes > 1:
        here = accelerator.reduce((~here).float(), "sum") == 0
    return here
