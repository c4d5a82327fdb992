"""The configuration of what is minimized: labels, a teacher, consistency, cosub, DINO, or an objective of yours."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any, Literal

from anyres.config import config
from anyres.training.schedule import half_cosine

Target = Literal["cls", "gap", "logit"]
LabelLoss = Literal["ce", "bce", "soft_bce"]


@config
class DistillationConfig:
    """A teacher beside the labels: loss = (1 - alpha) x labels + alpha x teacher, at every view."""

    # the teacher's decision (hard), or its distribution at `temperature` (soft)
    kind: Literal["none", "hard", "soft"] = "none"
    # a run folder, a model of ours, timm:NAME, torchvision:NAME, or known weights such as deit3_small.384
    teacher: str | None = None
    # a file, URL or hub id for it instead of the published weights
    weights: str | None = None
    # CSV with the columns student,teacher (names or indices), where the teacher's classes are others
    classes: str | None = None
    # the teacher sees each view as it is, or resized to its own size; always with its own normalization
    size: Literal["view", "own"] = "view"
    # the teacher's share of the loss, above 0 to 1
    alpha: float = 0.5
    # of `soft`
    temperature: float = 1.0
    # what soft's sum is divided by: images x classes (element, as DeiT's code does), or images (batch)
    over: Literal["element", "batch"] = "element"

    def __post_init__(self) -> None:
        name = "objective.distillation"
        if self.kind == "none" and (given := self.teacher or self.weights or self.classes):
            raise ValueError(f"{name} names {given} but does not distil: set {name}.kind=hard or soft")
        if self.kind != "none" and not self.teacher:
            raise ValueError(f"{name}.kind={self.kind} needs a teacher: set {name}.teacher, as regnety_160.teacher")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"{name}.alpha={self.alpha} must be above 0 and at most 1, as 0.5")
        if not self.temperature > 0:
            raise ValueError(f"{name}.temperature={self.temperature} must be above 0")


@config
class DinoConfig:
    """Training without labels: each view, from the student, is compared with the first two, from its teacher."""

    # prototypes, the outputs of the projection head
    out_dim: int = 65536
    # width of the head's two hidden layers
    hidden: int = 2048
    # width before the last layer
    bottleneck: int = 256
    # each prototype keeps length one (steadier; false may reach more)
    norm_last_layer: bool = True
    # epochs in which the prototypes do not move
    freeze_last_layer: int = 1
    # of the student's softmax
    student_temperature: float = 0.1
    # of the teacher's softmax, after the warm-up
    teacher_temperature: float = 0.04
    # of the teacher's softmax, at its start
    warmup_temperature: float = 0.04
    # epochs from the one to the other, step by step with each epoch
    warmup_epochs: int = 0
    # how much of itself the teacher keeps at a step; rises to 1 by half a cosine
    momentum: float = 0.996
    # the same, of the mean of the teacher's scores, which is subtracted so that it does not always say the same
    center_momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("out_dim", "hidden", "bottleneck"):
            if getattr(self, name) < 1:
                raise ValueError(f"objective.dino.{name}={getattr(self, name)} must be 1 or more")
        for name in ("freeze_last_layer", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.dino.{name}={getattr(self, name)} must be 0 epochs or more")
        for name in ("student_temperature", "teacher_temperature", "warmup_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"objective.dino.{name}={getattr(self, name)} must be above 0, as 0.04")
        for name in ("momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"objective.dino.{name}={getattr(self, name)} must lie between 0 and 1, as 0.9")

    def temperature_at(self, epoch: int) -> float:
        """The teacher's temperature, constant within an epoch: the warm-up's first and last epochs are at its ends."""
        if epoch >= self.warmup_epochs:
            return self.teacher_temperature
        climbed = epoch / max(1, self.warmup_epochs - 1)
        return self.warmup_temperature + climbed * (self.teacher_temperature - self.warmup_temperature)

    def momentum_at(self, progress: float) -> float:
        """The teacher's momentum at a share of the run's steps."""
        return half_cosine(self.momentum, 1.0, progress)


@config
class ObjectiveConfig:
    """What is minimized at every view."""

    # auto: supervised, cosub or dino, as the keys below say; or an objective of yours, by its registered name
    name: str = "auto"
    # what an objective of yours is to know: names and values
    options: dict[str, Any] = field(default_factory=dict)
    # auto: the task's own; ce: cross-entropy; bce: DeiT III's binary one, any share of a class being all of it, which
    # wants mix.smoothing=0; soft_bce: a binary one with the shares as they are
    loss: Literal["auto", "ce", "bce", "soft_bce"] = "auto"
    # balanced: what an image says of its class counts mean / n times in the loss, where the class has n training images
    # and the classes have that many on average; of binary losses that is each class's "yes"
    class_weights: Literal["none", "balanced"] = "none"
    # distance of a view's feature to that of the next larger view (ResFormer's --distillation-type)
    consistency: Literal["none", "smooth_l1", "l2", "cosine", "soft"] = "none"
    # the feature it compares: class token, mean of the patch tokens, or logits (ResFormer's --distillation-target)
    target: Target = "cls"
    # of the consistency term, added to the rest (ResFormer's alpha)
    weight: float = 1.0
    # of consistency=soft
    temperature: float = 1.0
    # a teacher beside the labels
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    # every view goes through the model twice, with other blocks dropped; wants model.drop_path
    cosub: bool = False
    # so many neighboring views are seen at a step, another window each time (ResFormer's iter mode; null: all)
    views_per_step: int | None = None
    # training without labels instead of all this ({}: as published; null: with labels)
    dino: DinoConfig | None = None

    def __post_init__(self) -> None:
        if self.consistency == "soft" and self.target != "logit":
            raise ValueError("objective.consistency=soft compares class distributions: set objective.target=logit")
        if not self.temperature > 0:
            raise ValueError("objective.temperature must be above 0")
        if self.cosub and (self.consistency != "none" or self.distillation.kind != "none"):
            raise ValueError(
                "objective.cosub goes alone: set objective.consistency=none and objective.distillation.kind=none"
            )
        if self.cosub and self.class_weights != "none":
            raise ValueError("objective.cosub has no weights of classes: set objective.class_weights=none")
        if self.views_per_step is not None and self.views_per_step < 1:
            raise ValueError(f"objective.views_per_step={self.views_per_step} must be 1 or more, or null for all")
        if self.dino is not None:
            plain = ObjectiveConfig(loss="ce") if self.loss == "ce" else ObjectiveConfig()
            others = (f.name for f in fields(self) if getattr(self, f.name) not in (self.dino, getattr(plain, f.name)))
            if other := next(others, None):
                raise ValueError(f"objective.dino goes alone: leave out objective.{other}, or set objective.dino=null")

    @property
    def chosen(self) -> str:
        """The name of the objective: ``supervised``, ``cosub``, ``dino`` or one of yours."""
        if self.name != "auto":
            return self.name
        return "dino" if self.dino is not None else "cosub" if self.cosub else "supervised"
