"""The optimizer as values, and the learning rate and weight decay as functions of the step. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal

from anyres.config import config, nearest

USUAL_OPTIMIZERS = ("adamw", "adam", "sgd", "momentum", "lamb", "lion", "nadamw", "rmsprop")
"""Some of timm's, whose names are right without asking timm, which takes seconds to import."""


@config
class OptimConfig:
    """The optimizer, its learning rate and its weight decay."""

    # any optimizer of timm's (its lamb has a global clip of its own at 1, as the papers' has)
    name: str = "adamw"
    # peak learning rate
    lr: float = 1e-3
    # lr is multiplied by (global batch / lr_batch), as DeiT (512) and ResT (256) do (null: as it is)
    lr_batch: int | None = None
    # learning rate at the end
    min_lr: float = 1e-5
    # learning rate at which warm-up begins
    warmup_lr: float = 0.0
    # lr_batch scales min_lr and warmup_lr too, as in ResT v1
    scale_bounds: bool = False
    # cosine: after warm-up (ResFormer); inclusive_cosine: warm-up's last step is at the peak already (ResT, DINO);
    # epoch_cosine: constant within an epoch and one epoch late, as timm's under DeiT's script; constant: lr from the
    # warm-up to the end, so that a finished run can be prolonged
    schedule: Literal["cosine", "inclusive_cosine", "epoch_cosine", "constant"] = "cosine"
    # linear warm-up, may be a fraction
    warmup_epochs: float = 5.0
    # of parameters other than biases, norms and what the model exempts
    weight_decay: float = 0.05
    # weight decay at the end, reached by half a cosine (null: stays)
    weight_decay_end: float | None = None
    # each layer learns at this share of the next one's rate, the head at the full one (1: all alike)
    layer_decay: float = 1.0
    # of Adam and its relatives
    betas: tuple[float, float] = (0.9, 0.999)
    # of Adam and its relatives
    eps: float = 1e-8
    # largest global gradient norm (null: no clipping)
    clip_norm: float | None = None
    # largest norm of each parameter's gradient by itself, after clip_norm, as DINO's code clips (null: no clipping)
    clip_each: float | None = None

    def __post_init__(self) -> None:
        if self.name not in USUAL_OPTIMIZERS:
            from timm.optim import list_optimizers  # with torch

            known = list_optimizers()
            if self.name not in known:
                raise ValueError(f"optim.name={self.name} is no optimiser of timm's{nearest(self.name, known)}")
        if not self.lr > 0 or min(self.min_lr, self.warmup_epochs, self.weight_decay) < 0:
            raise ValueError("optim.lr must be above 0; min_lr, warmup_epochs and weight_decay 0 or more")
        if self.lr_batch is not None and self.lr_batch < 1:
            raise ValueError(f"optim.lr_batch={self.lr_batch} must be 1 or more, or null")
        for name, norm in (("clip_norm", self.clip_norm), ("clip_each", self.clip_each)):
            if norm is not None and not norm > 0:
                raise ValueError(f"optim.{name}={norm} must be above 0, or null for none")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas={list(self.betas)} must each be 0 or more and below 1, as [0.9, 0.999]")
        if not self.eps >= 0:
            raise ValueError(f"optim.eps={self.eps} must be 0 or more, as 1e-8")
        self._check_shapes()

    def _check_shapes(self) -> None:
        """What the schedules and the layers' rates ask for."""
        if self.warmup_lr < 0:
            raise ValueError(f"optim.warmup_lr={self.warmup_lr} must be 0 or more")
        if self.scale_bounds and self.lr_batch is None:
            raise ValueError("optim.scale_bounds scales min_lr and warmup_lr as lr is: set optim.lr_batch, as 512")
        if self.schedule == "epoch_cosine" and self.warmup_epochs and not self.warmup_lr:
            raise ValueError(
                "optim.schedule=epoch_cosine spends its first two epochs at warmup_lr: set optim.warmup_lr, as 1e-6"
            )
        if self.weight_decay_end is not None and (self.weight_decay_end < 0 or not self.weight_decay):
            raise ValueError(
                f"optim.weight_decay={self.weight_decay} cannot go to weight_decay_end={self.weight_decay_end}: "
                "the first must be above 0, the second 0 or more"
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay={self.layer_decay} must be above 0 and at most 1 (1: off), as 0.75")

    def peak_lr(self, batch_size: int) -> float:
        """The learning rate at the end of warm-up for a global batch of ``batch_size`` images."""
        return self.lr * batch_size / self.lr_batch if self.lr_batch else self.lr


def learning_rate(step: int, peak: float, config: OptimConfig, steps_per_epoch: int, steps: int) -> float:
    """The rate of ``step`` of ``steps``: linear warm-up to ``peak``, then half a cosine to ``min_lr``.

    ``cosine``: ResFormer's rule: the warm-up reaches the peak with the first step of the cosine.
    ``inclusive_cosine``: ResT's and DINO's: the warm-up's last step is at the peak already, and so is the next.
    ``epoch_cosine``: timm's as DeiT drives it: constant within an epoch and one epoch late, so that epochs 0 and 1
    are at ``warmup_lr``; the cosine is that of the whole run, not begun after the warm-up, and so a little below the
    peak at its start. (DeiT's script, when resumed, skips one epoch of it; a resumed run here does not.)
    ``constant``: the peak from the end of the warm-up on, whatever ``steps`` are.
    """
    bounds = peak / config.lr if config.scale_bounds else 1.0
    low, first = config.min_lr * bounds, config.warmup_lr * bounds
    warmup = min(config.warmup_epochs * steps_per_epoch, steps)
    if config.schedule == "epoch_cosine":
        late = max(0, step // steps_per_epoch - 1)
        if late < config.warmup_epochs:
            return first + late * (peak - first) / config.warmup_epochs
        return half_cosine(peak, low, late * steps_per_epoch / steps)
    if config.schedule == "inclusive_cosine":
        warmup = int(warmup)
        if step < warmup:
            return first + (peak - first) * step / max(1, warmup - 1)
    elif step < warmup:
        return first + (peak - first) * step / warmup
    if config.schedule == "constant":
        return peak
    return half_cosine(peak, low, (step - warmup) / max(1e-9, steps - warmup))


def weight_decay(step: int, config: OptimConfig, steps: int) -> float:
    """The weight decay of ``step`` of ``steps``: half a cosine from first to last value, if there is a last one."""
    if config.weight_decay_end is None:
        return config.weight_decay
    return half_cosine(config.weight_decay, config.weight_decay_end, step / steps)


def half_cosine(first: float, last: float, progress: float) -> float:
    """``first`` at progress 0, ``last`` at 1."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * progress))
