"""Training configuration, and the schedule it resolves to for a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anyres.config import config
from anyres.training.schedule import OptimConfig, learning_rate, weight_decay

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Tracker = Literal["wandb", "mlflow"]
Keep = Literal["auto", "best", "last"]
Version = Literal["average", "raw"]
"""Of a model's weights: their moving average, or as the optimizer leaves them."""
MOST_THREADS = 1024


@config
class TrainConfig:
    """How long and how a model is trained."""

    # passes over the training images; all views of an image together count as one visit
    epochs: int = 100
    # of the initialization, the order of images, augmentation, mixing and stochastic depth
    seed: int = 0
    # auto: bf16 where the device multiplies it natively, else fp32
    precision: Precision = "auto"
    # decay of the weights' moving average (null: none)
    ema_decay: float | None = 0.999
    # its decay rises with the steps, so that a short run's average forgets the first weights (false: it is ema_decay
    # from the first step on, as in the papers' code)
    ema_warmup: bool = True
    # of the weights that decide which step is best, meet the claim and are written to model.safetensors: the moving
    # average, where one is kept, or the raw ones; both are scored
    publish: Version = "average"
    # whose weights model.safetensors holds: those of the best step scored (the last step's are beside them, in
    # last.safetensors), or of the last, as papers do; auto: best where data.eval_split is val, last where it is test
    keep: Keep = "auto"
    # convolution weights in channels-last memory format
    channels_last: bool = False
    # each step's images go through the model in so many parts, whose gradients are summed: the same step with less
    # memory (batch norm sees one part at a time)
    accumulate: int = 1
    # blocks are computed again in the backward pass instead of stored: less memory, more time
    grad_checkpointing: bool = False
    # of the CPU (null: as many as there are processors or a quota gives, fewer where that is plainly faster); a
    # resumed run keeps its number, as it decides how sums are rounded
    threads: int | None = None
    # torch.compile
    compile: bool = False
    # what stochastic depth drops is not computed: the same step in less time (on a CPU, uncompiled; a GPU would have to
    # wait for which images are kept)
    skip_dropped: bool = True
    # triton: Triton kernels for mixed attention heads, ResTv2's attention and residual branches, on a CUDA device;
    # checkpoints are the same
    kernels: Literal["plain", "triton"] = "plain"
    # parameters, gradients, optimizer and moving average are split over the processes (FSDP2), where the model is too
    # large for one device; the result is the same to float tolerance
    shard: bool = False
    # all; attention, position tables and the classifier; or the classifier alone. The rest is frozen, with batch norm's
    # statistics
    trainable: Literal["all", "attention", "head"] = "all"
    # the stem and so many of the first blocks are frozen too, counted as optim.layer_decay counts layers
    freeze_blocks: int = 0
    # a step whose loss or gradient is not finite stops the run, or is skipped
    non_finite: Literal["stop", "skip"] = "stop"
    # more skipped steps in a row stop the run
    skip_at_most: int = 10
    # epochs between two scorings of the held-out images (0: only at the end; null: never, as where a report follows)
    eval_every: int | None = 10
    # the run ends after so many scorings in a row without a better one (null: it does not)
    patience: int | None = None
    # the run ends after so many minutes in all, scorings included, with its weights and page written; the same command
    # with more of them goes on (null: no limit)
    max_minutes: float | None = None
    # steps between two checkpoints (null: every epoch, at most 500 steps); the best one scored is kept too
    checkpoint_every: int | None = None
    # steps between two lines of metrics.jsonl
    log_every: int = 10
    # what else is told of every record (to be installed by yourself, see docs/scale.md)
    trackers: tuple[Tracker, ...] = ()

    def __post_init__(self) -> None:
        counts = {
            "epochs": self.epochs,
            "checkpoint_every": self.checkpoint_every,
            "log_every": self.log_every,
            "accumulate": self.accumulate,
            "skip_at_most": self.skip_at_most,
            "threads": self.threads,
            "patience": self.patience,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"train.{name}={value} must be 1 or more")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ValueError(f"train.threads={self.threads} must be {MOST_THREADS} or fewer")
        if self.shard and (self.channels_last or self.compile or self.precision == "fp16"):
            raise ValueError(
                "train.shard=true goes without channels_last, compile and precision=fp16: set train.precision=bf16, "
                "the others to false"
            )
        if self.patience is not None and not self.eval_every:
            raise ValueError(f"train.patience={self.patience} counts scorings: set train.eval_every=1 or more")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"train.max_minutes={self.max_minutes} must be above 0, or null for no limit")
        if self.eval_every is None and self.keep == "best":
            raise ValueError("train.keep=best chooses by scorings: set train.eval_every=0 or more")
        if min(self.eval_every or 0, self.seed) < 0:
            raise ValueError(f"train.eval_every={self.eval_every} and train.seed={self.seed} must be 0 or more")
        if self.freeze_blocks < 0:
            raise ValueError(f"train.freeze_blocks={self.freeze_blocks} must be 0 (none) or more")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay={self.ema_decay} must be 0 or more and below 1, or null for none")


@dataclass(frozen=True)
class Plan:
    """The schedule for one dataset: counts of steps, and the configurations behind it."""

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
