"""Optimiser, parameter groups and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection

from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from anyres.config import config, nearest


@config
class OptimConfig:
    """``name`` is any optimiser of timm's. ``lr`` is multiplied by (global batch / ``lr_batch``) when that is set,
    as DeiT (512) and ResT (256) do; ``min_lr`` never is. ``warmup_epochs`` may be a fraction. ``clip_norm``: global
    gradient norm, or null for none."""

    name: str = "adamw"
    lr: float = 1e-3
    lr_batch: int | None = None
    min_lr: float = 1e-5
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        known = list_optimizers()
        if self.name not in known:
            raise ValueError(f"optim.name={self.name} is no optimiser of timm's{nearest(self.name, known)}")
        if not self.lr > 0 or min(self.min_lr, self.warmup_epochs, self.weight_decay) < 0:
            raise ValueError("optim.lr must be above 0; min_lr, warmup_epochs and weight_decay 0 or more")
        if self.lr_batch is not None and self.lr_batch < 1:
            raise ValueError(f"optim.lr_batch={self.lr_batch} must be 1 or more, or null")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optim.clip_norm={self.clip_norm} must be above 0, or null for none")

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate at the end of warm-up for a global batch of ``batch_size`` images."""
        return self.lr * batch_size / self.lr_batch if self.lr_batch else self.lr


def build_optimizer(model: nn.Module, config: OptimConfig, no_weight_decay: Collection[str]) -> Optimizer:
    """AdamW (or another of timm's) whose 1-D parameters, biases and the model's named exceptions do not decay."""
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=no_weight_decay)
    optimizer: Optimizer = create_optimizer_v2(groups, config.name, lr=config.lr, eps=config.eps, betas=config.betas)
    return optimizer


def learning_rate(step: int, peak: float, config: OptimConfig, steps_per_epoch: int, steps: int) -> float:
    """Linear warm-up from 0, then half a cosine to ``min_lr`` (ResFormer's rule, recipes F1): the rate of ``step``."""
    warmup = min(config.warmup_epochs * steps_per_epoch, steps)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1e-9, steps - warmup)
    return config.min_lr + 0.5 * (peak - config.min_lr) * (1 + math.cos(math.pi * progress))
