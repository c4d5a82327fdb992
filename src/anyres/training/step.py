"""One step of training: seed it, set the rates, back-propagate the objective's terms one by one, check, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anyres.flow import Batch
from anyres.training.objectives.dino import drop_last_gradient
from anyres.training.objectives.objective import Teacher, terms
from anyres.training.optim import clip_each, set_rates
from anyres.training.parallel import GlooBatchNorm
from anyres.training.plan import Plan
from anyres.training.shard import whole
from anyres.training.state import State, seed_step


class NonFiniteLoss(Exception):
    """The loss or its gradient is not finite; ``index`` (b,) names the batch's positions in the data set."""

    def __init__(self, step: int, index: Tensor) -> None:
        super().__init__(f"loss or gradient is not finite at step {step}")
        self.step, self.index = step, index


def make_step(
    accelerator: Accelerator,
    student: nn.Module,
    state: State,
    batch: Batch,
    plan: Plan,
    teacher: Teacher | None = None,
) -> dict[str, Tensor]:
    """One update from one batch; returns the detached numbers to show.

    Raises NonFiniteLoss before the update, on every process alike, with the state as it was.
    """
    step = state.progress.step
    seed_step(plan.train.seed, step, accelerator.process_index)
    rate = plan.rate(step)
    set_rates(state.optimizer, rate, plan.decay(step))
    state.optimizer.zero_grad(set_to_none=True)
    set_to_train(student)
    if state.teacher is not None:
        teacher = state.teacher
        state.teacher.begin(plan.teacher_temperature(step))
    buffers = [buffer for module in state.modules.values() for buffer in module.buffers()]
    statistics = [buffer.clone() for buffer in buffers]  # a forward pass changes batch norm's
    shown = back_propagate(accelerator, student, batch, plan, teacher)
    norm = whole(accelerator.clip_grad_norm_(student.parameters(), plan.optim.clip_norm or math.inf))
    total = shown["loss"]
    finite = torch.isfinite(total) if accelerator.scaler is not None else torch.isfinite(total + norm)
    if not _all_agree(accelerator, finite):
        for buffer, before in zip(buffers, statistics, strict=True):
            buffer.copy_(before)
        if accelerator.scaler is not None:
            accelerator.scaler.update()  # else it would not unscale again
        raise NonFiniteLoss(step, batch.index)
    if plan.optim.clip_each:
        clip_each(student.parameters(), plan.optim.clip_each)
    if state.teacher is not None and plan.holds_last_layer(step):
        drop_last_gradient(state.model)
    state.optimizer.step()
    if state.teacher is not None:
        state.teacher.follow(state.model, plan.teacher_momentum(step), accelerator)
    if state.ema is not None:
        state.ema.update(state.model, step=step + 1)
    state.progress.images += len(batch.index) * accelerator.num_processes
    state.progress.pixels += sum(v.shape[0] * v.shape[2] * v.shape[3] for v in batch.views) * accelerator.num_processes
    if accelerator.num_processes > 1:
        shown = dict(zip(shown, accelerator.reduce(torch.stack(list(shown.values())), "mean"), strict=True))
    return shown | {"lr": torch.tensor(rate), "grad_norm": norm}


def back_propagate(
    accelerator: Accelerator, student: nn.Module, batch: Batch, plan: Plan, teacher: Teacher | None
) -> dict[str, Tensor]:
    """Add the gradients of the batch's loss, part by part and view by view; ``loss`` and its parts, detached.

    Between processes gradients are exchanged once, with the last view of the last part.
    """
    shown = {"loss": torch.zeros((), device=accelerator.device)}
    parts = list(split(batch, plan.train.accumulate))
    for p, part in enumerate(parts):
        share = len(part.index) / len(batch.index)
        made = terms(student, part, plan.objective, teacher)
        for i in range(len(part.views)):
            last = p + 1 == len(parts) and i + 1 == len(part.views)
            with contextlib.nullcontext() if last else accelerator.no_sync(student):
                term = next(made)
                accelerator.backward(term.loss * share if len(parts) > 1 else term.loss)
            for name, value in {"loss": term.loss.detach(), **term.shown}.items():
                weighted = value * share if len(parts) > 1 else value
                shown[name] = shown[name] + weighted if name in shown else weighted
    return shown


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch's images in ``parts`` parts of about one size (fewer where there are fewer images)."""
    for places in torch.arange(len(batch.index)).chunk(parts):
        part = slice(int(places[0]), int(places[-1]) + 1)
        draw = None if batch.draw is None else batch.draw[part]
        views = tuple(view[part] for view in batch.views)
        yield replace(batch, views=views, targets=batch.targets.part(part), index=batch.index[part], draw=draw)


def set_to_train(student: nn.Module) -> None:
    """Training mode, but for batch norm that is frozen: it keeps its statistics as it keeps its weights."""
    student.train()
    for module in student.modules():
        if isinstance(module, _BatchNorm | GlooBatchNorm) and not module.weight.requires_grad:
            module.eval()


def _all_agree(accelerator: Accelerator, here: Tensor) -> bool:
    """Whether ``here`` (a truth value) holds on every process, so that all do the same."""
    if accelerator.num_processes > 1:
        here = accelerator.reduce((~here).float(), "sum") == 0
    return bool(here)
