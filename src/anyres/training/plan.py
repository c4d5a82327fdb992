"""What a training run is asked for, and what that comes to for a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anyres.config import config
from anyres.ops.kernels import Kernels
from anyres.training.optim import OptimConfig, learning_rate, weight_decay
from anyres.training.parallel import Precision

Tracker = Literal["wandb", "mlflow"]


@config
class TrainConfig:
    """``epochs`` over the training images, every view of an image counting as one visit. ``ema_decay``: null keeps no
    moving average. ``eval_every`` epochs the held-out images are scored (0: only at the end). ``checkpoint_every``
    steps a checkpoint is written (null: every epoch, at most 500 steps apart); the best one scored is kept too.

    ``channels_last``: convolutions' weights lie channels last in memory.
    ``accumulate``: each step's images go through the model in so many parts, whose gradients are summed: the same
    step with less memory (but batch norm sees a part at a time). ``grad_checkpointing``: blocks are run again in the
    backward pass instead of storing what they computed: less memory, more time. ``compile``: torch.compile.
    ``skip_dropped``: what stochastic depth drops is not computed, the same step in less time (on a CPU, uncompiled;
    a GPU would have to wait for which images are kept).
    ``kernels``: triton has attention's mixed heads, ResTv2's attention, and residual branches with their norms computed
    by Triton's kernels, on a CUDA device alone (docs/kernels.md); checkpoints are the same.
    ``shard``: parameters, gradients, optimiser and moving average are split over the processes (FSDP2), where the model
    is too large to be copied to each; the result is the same to float tolerance.
    ``trainable``: all parameters; those of attention, position tables and the classifier; or the classifier's; the
    rest is frozen, with batch norm's statistics. ``non_finite``: a step whose loss or gradient is not finite stops
    the run, or is skipped, unless it is one of more than ``skip_at_most`` in a row. ``trackers``: what else is told of
    every record, of ``wandb`` and ``mlflow`` (to be installed by yourself; see docs/scale.md)."""

    epochs: int = 100
    seed: int = 0
    precision: Precision = "auto"
    ema_decay: float | None = 0.999
    channels_last: bool = False
    accumulate: int = 1
    grad_checkpointing: bool = False
    compile: bool = False
    skip_dropped: bool = True
    kernels: Kernels = "plain"
    shard: bool = False
    trainable: Literal["all", "attention", "head"] = "all"
    non_finite: Literal["stop", "skip"] = "stop"
    skip_at_most: int = 10
    eval_every: int = 10
    checkpoint_every: int | None = None
    log_every: int = 10
    trackers: tuple[Tracker, ...] = ()

    def __post_init__(self) -> None:
        counts = {
            "epochs": self.epochs,
            "checkpoint_every": self.checkpoint_every,
            "log_every": self.log_every,
            "accumulate": self.accumulate,
            "skip_at_most": self.skip_at_most,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"train.{name}={value} must be 1 or more")
        if self.shard and (self.channels_last or self.compile or self.precision == "fp16"):
            raise ValueError(
                "train.shard=true goes without channels_last, compile and precision=fp16: set train.precision=bf16, "
                "the others to false"
            )
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

    @property
    def checkpoint_every(self) -> int:
        return self.train.checkpoint_every or min(self.steps_per_epoch, 500)

    def rate(self, step: int) -> float:
        """The learning rate of ``step``."""
        return learning_rate(step, self.optim.peak_lr(self.batch_size), self.optim, self.steps_per_epoch, self.steps)

    def decay(self, step: int) -> float:
        """The weight decay of ``step``."""
        return weight_decay(step, self.optim, self.steps)
