"""What is trained, ready for its first step, and for how many steps."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator

from anyres.config import UserError
from anyres.data.loader import steps_per_epoch
from anyres.models.contract import Network
from anyres.ops.kernels import check_triton, kernel_operations
from anyres.ops.residual import skip_dropped
from anyres.recipe import Recipe
from anyres.runs.teacher import Teacher, has_two_heads
from anyres.tasks import Parts, Task
from anyres.training.objectives import Objective
from anyres.training.objectives.objective import Exempting
from anyres.training.optim import build_optimizer
from anyres.training.parallel import autocast_dtype, synchronize_batch_norm
from anyres.training.plan import Plan
from anyres.training.state import State, build_ema


def build_learner(
    recipe: Recipe, task: Task, model: Network, accelerator: Accelerator, teacher: Teacher | None
) -> tuple[Objective, State]:
    """What is minimized, and the state of what is trained for it, on the device, before the first step."""
    prepare_model(recipe, model, accelerator)
    objective = task.objective(
        Parts(
            model,
            recipe.objective,
            teacher,
            two_heads=teacher is not None and has_two_heads(model),
            seed=recipe.train.seed,
            dtype=autocast_dtype(recipe.train.precision),
        )
    )
    trained = objective.trained
    exempt = trained.no_weight_decay() if isinstance(trained, Exempting) else set()
    optimizer = build_optimizer(trained, recipe.optim, exempt)
    ema = build_ema(trained, recipe.train.ema_decay, recipe.train.ema_warmup)
    copies, publish = objective.copies, recipe.train.publish
    state = State(trained, ema, optimizer, copies=copies, published=objective.published, publish=publish)
    if recipe.train.shard and accelerator.num_processes > 1:
        state.shard(objective.student, accelerator.device, objective.wholes)
        state.optimizer = build_optimizer(trained, recipe.optim, exempt)
    return objective, state


def prepare_model(recipe: Recipe, model: Network, accelerator: Accelerator) -> None:
    """Put ``model`` on the device, in the memory layout and with the recomputation that the recipe asks for."""
    synchronize_batch_norm(model.to(accelerator.device))
    if recipe.train.channels_last:
        model.to(memory_format=torch.channels_last)
    if recipe.train.grad_checkpointing:
        model.set_grad_checkpointing()
    if recipe.train.skip_dropped and accelerator.device.type == "cpu" and not recipe.train.compile:
        skip_dropped(model)
    smallest = min(recipe.views.parsed, key=lambda size: size.height * size.width)
    if recipe.train.kernels == "triton" and not kernel_operations(model, smallest, accelerator.device):
        name = recipe.model["name"]
        raise UserError(f"train.kernels=triton: no part of {name} has a kernel; set train.kernels=plain")


def check_kernels(recipe: Recipe, device: torch.device) -> None:
    """Raises UserError where the recipe asks for kernels that do not run on ``device``."""
    try:
        if recipe.train.kernels == "triton":
            check_triton(device)
    except UserError as error:
        raise UserError(f"train.kernels=triton: {error}; set train.kernels=plain") from None


def make_plan(recipe: Recipe, images: int, processes: int = 1) -> Plan:
    """What the recipe comes to for so many training images.

    Where ``data.batch_size`` is more than all of them, steps have fewer, and the learning rate goes down with them.
    """
    batch, optim = recipe.data.step_images, recipe.optim
    train = recipe.train
    if batch > images:
        whole, batch = batch, fitting_batch(images, processes)
        train = replace(train, accumulate=min(train.accumulate, batch))
        optim = optim if optim.lr_batch else replace(optim, lr_batch=whole, scale_bounds=True)
    per_epoch = steps_per_epoch(images, batch)
    return Plan(train.epochs * per_epoch, per_epoch, batch, train, optim)


def fitting_batch(images: int, processes: int) -> int:
    """Images of a step where the recipe's are more than there are: a quarter of them as a power of two, at least 8 or
    all, and as many for each process."""
    quarter = 1 << (max(images // 4, 1).bit_length() - 1)
    batch = min(max(quarter, 8), images)
    return max(batch // processes, 1) * processes
