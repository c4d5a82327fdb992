"""What is minimised at every view: the labels' loss, a teacher's lesson, scale consistency; or cosub's pair; or DINO's.

* ResFormer: Scaling ViTs with Multi-Resolution Training (Tian et al., CVPR 2023), section 3: the largest view learns
  from the labels alone, every smaller one also from the feature of the view just above it.
* DeiT (Touvron et al., ICML 2021), section 4: a frozen teacher's decision, or its distribution, beside the labels.
* Co-training 2L submodels (Touvron et al., CVPR 2023): two passes with other dropped blocks teach each other.
* DINO (Caron et al., ICCV 2021): without labels, every view learns what a slow copy of the student says of two others.

What teaches is detached, so each term may be back-propagated before the next view runs: the memory of one view, the
gradients of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.flow import Batch, Size, seen_views
from anyres.training.objectives.losses import (
    LabelLoss,
    distance,
    hard_distillation,
    label_loss,
    pair_loss,
    self_distillation,
    soft_distillation,
)
from anyres.training.optim import half_cosine

Target = Literal["cls", "gap", "logit"]
Teacher = Callable[[Tensor], Tensor]
"""A view (b, 3, h, w), normalised and mixed as the student sees it -> logits (b, k) over the student's classes; DINO's:
shares (b, k) of prototypes."""
TAUGHT = 2
"""So many views, the first and largest, are seen by DINO's teacher: the global ones."""


@config
class DistillationConfig:
    """A teacher beside the labels: loss = (1 - ``alpha``) x labels + ``alpha`` x teacher, at every view.

    ``kind``: the teacher's decision (hard) or its distribution at ``temperature`` (soft). ``teacher``: a run folder,
    a model's name of ours or of timm's, ``torchvision:NAME``, or known weights such as ``deit3_small.384``;
    ``weights``: a file for it, instead of the published ones. ``classes``: a CSV file with the columns
    ``student,teacher`` (names or indices) where the teacher's classes are others. ``size``: the teacher sees each
    ``view`` as it is, or resized to its ``own`` size; always with its own normalisation. ``over``: what soft's sum is
    divided by, images x classes (``element``, as DeiT's code) or images (``batch``)."""

    kind: Literal["none", "hard", "soft"] = "none"
    teacher: str | None = None
    weights: str | None = None
    classes: str | None = None
    size: Literal["view", "own"] = "view"
    alpha: float = 0.5
    temperature: float = 1.0
    over: Literal["element", "batch"] = "element"

    def __post_init__(self) -> None:
        name = "objective.distillation"
        if self.kind == "none" and (given := self.teacher or self.weights or self.classes):
            raise ValueError(f"{name} names {given} but does not distil: set {name}.kind=hard or soft")
        if self.kind != "none" and not self.teacher:
            raise ValueError(f"{name}.kind={self.kind} needs a teacher: set {name}.teacher, as regnety_160")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"{name}.alpha={self.alpha} must be above 0 and at most 1, as 0.5")
        if not self.temperature > 0:
            raise ValueError(f"{name}.temperature={self.temperature} must be above 0")


@config
class DinoConfig:
    """Training without labels: each view, from the student, is compared with the first two views, from its teacher.

    ``out_dim``, ``hidden``, ``bottleneck``: widths of the projection head; ``norm_last_layer``: each of its prototypes
    keeps length one (steadier; false may reach more); ``freeze_last_layer``: epochs for which they do not move.
    ``teacher_temperature`` is reached from ``warmup_temperature`` within ``warmup_epochs``, epoch by epoch.
    ``momentum`` of the teacher goes to 1 by half a cosine; ``centre_momentum`` is of the mean of its scores, which is
    subtracted so that it does not always say the same."""

    out_dim: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    norm_last_layer: bool = True
    freeze_last_layer: int = 1
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    warmup_temperature: float = 0.04
    warmup_epochs: int = 0
    momentum: float = 0.996
    centre_momentum: float = 0.9

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
        for name in ("momentum", "centre_momentum"):
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
    """``loss``: ``ce``, cross-entropy; ``bce``, DeiT III's binary one, which takes any share of a class for all of it
    and so wants ``mix.smoothing`` 0; ``soft_bce``, a binary one with the shares as they are; ``auto``: ``ce``, or
    ``soft_bce`` where images have several labels, which leaves no place for ``ce``. ``consistency`` and
    ``target`` name the distance and the feature it compares (ResFormer's ``--distillation-type`` and
    ``--distillation-target``); ``weight`` is its alpha, added to the rest; ``temperature`` is read by ``soft`` alone;
    ``none``: no consistency. ``distillation``: see there. ``cosub``: every view goes through the model twice, which
    wants ``model.drop_path``. ``views_per_step``: so many neighbouring views are seen at a step, another window each
    time (ResFormer's ``iter`` mode; null: all). ``dino``: instead of all this, training without
    labels ({}: as published; null: with labels)."""

    loss: Literal["auto", "ce", "bce", "soft_bce"] = "auto"
    consistency: Literal["none", "smooth_l1", "l2", "cosine", "soft"] = "none"
    target: Target = "cls"
    weight: float = 1.0
    temperature: float = 1.0
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    cosub: bool = False
    views_per_step: int | None = None
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
        if self.views_per_step is not None and self.views_per_step < 1:
            raise ValueError(f"objective.views_per_step={self.views_per_step} must be 1 or more, or null for all")
        if self.dino is not None:
            plain = ObjectiveConfig(loss="ce") if self.loss == "ce" else ObjectiveConfig()
            others = (f.name for f in fields(self) if getattr(self, f.name) not in (self.dino, getattr(plain, f.name)))
            if other := next(others, None):
                raise ValueError(f"objective.dino goes alone: leave out objective.{other}, or set objective.dino=null")

    @property
    def labels(self) -> LabelLoss:
        """The loss of the labels; ``ce`` where nothing was chosen."""
        return "ce" if self.loss == "auto" else self.loss

    def settle(self, multi_label: bool) -> ObjectiveConfig:
        """With ``loss`` chosen for a set of images with one label each, or several. Raises UserError for what has no
        meaning with several."""
        if self.dino is not None:
            return self
        if not multi_label:
            return replace(self, loss=self.labels)
        one = "is for one class an image, and these images have several labels: set"
        if self.loss == "ce":
            raise UserError(f"objective.loss=ce {one} objective.loss=soft_bce")
        if self.distillation.kind != "none":
            raise UserError(
                f"objective.distillation.kind={self.distillation.kind} {one} objective.distillation.kind=none"
            )
        if self.consistency == "soft":
            raise UserError(f"objective.consistency=soft {one} objective.consistency=smooth_l1")
        return replace(self, loss="soft_bce" if self.loss == "auto" else self.loss)


@runtime_checkable
class Backbone(Protocol):
    """The part of timm's contract that is used in training, and ``patch_tokens`` for the ``gap`` target."""

    def forward_features(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...
    def get_classifier(self) -> nn.Module: ...
    def no_weight_decay(self) -> set[str]: ...
    def patch_tokens(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class TwoHeaded(Protocol):
    """A backbone with a second classifier for the teacher's lessons, such as the distilled DeiT."""

    def heads(self, pooled: Tensor) -> tuple[Tensor, Tensor]: ...


class Student(nn.Module):
    """A backbone that also returns what a teacher teaches, and the feature its views are compared by.

    Returns (logits for the labels, logits for the teacher, feature). The first two are one and the same, but with
    ``two_heads``, for distilling into a model that is TwoHeaded: then each is its own head's. Feature by ``target``:
    ``cls``: the vector before the classifier (a ViT's normalised class token, else the pooled feature); ``gap``: the
    mean of the normalised patch tokens; ``logit``: the logits that the model answers with.
    """

    def __init__(self, model: Backbone, target: Target, two_heads: bool = False) -> None:
        super().__init__()
        self.model = model
        self.target = target
        self.two_heads = two_heads

    def forward(
        self, x: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"], Float[Tensor, "b c"]]:
        tokens = self.model.forward_features(x)
        pooled = self.model.forward_head(tokens, pre_logits=True)
        if self.two_heads:
            assert isinstance(self.model, TwoHeaded)
            logits, taught = self.model.heads(pooled)
            answer = (logits + taught) / 2
        else:
            logits = taught = answer = self.model.get_classifier()(pooled)
        if self.target == "cls":
            return logits, taught, pooled
        if self.target == "gap":
            return logits, taught, self.model.patch_tokens(tokens).mean(1)
        return logits, taught, answer


@dataclass(frozen=True)
class Term:
    """One view's share of the loss: ``loss`` (scalar, already divided by the number of views) is back-propagated;
    ``shown`` are detached scalars for the log."""

    loss: Tensor
    shown: dict[str, Tensor]


def terms(student: nn.Module, batch: Batch, config: ObjectiveConfig, teacher: Teacher | None = None) -> Iterator[Term]:
    """The terms of one batch, largest view first; their losses sum to the total (mean over views).

    ``student`` maps (b, 3, h, w) to what Student returns, for DINO to the scores of prototypes. Loss of view i: the
    labels' (and the teacher's, as DistillationConfig says), plus ``weight`` x distance to the detached feature of view
    i-1 (absent for the first).
    """
    if config.cosub:
        yield from _pairs(student, batch, config)
        return
    if config.dino is not None:
        assert teacher is not None
        yield from _without_labels(student, batch, config.dino, teacher)
        return
    names = view_names(batch)
    above: Tensor | None = None
    for i, view in enumerate(batch.views):
        logits, taught, feature = (wide(x) for x in student(view))
        name = names[i]
        loss = label_loss(logits, target_of(batch, i), config.labels)
        shown = {f"{config.labels}/{name}": loss.detach()}
        if teacher is not None:
            lesson = _distilled(taught, wide(teacher(view)), config.distillation)
            shown[f"distillation/{name}"] = lesson.detach()
            loss = (1 - config.distillation.alpha) * loss + config.distillation.alpha * lesson
        if above is not None and config.consistency != "none":
            apart = distance(feature, above, config.consistency, config.temperature)
            shown[f"consistency/{name}"] = apart.detach()
            loss = loss + config.weight * apart
        above = feature.detach()
        yield Term(loss / len(batch.views), shown)


def _distilled(taught: Tensor, lesson: Tensor, how: DistillationConfig) -> Tensor:
    if how.kind == "hard":
        return hard_distillation(taught, lesson)
    return soft_distillation(taught, lesson, how.temperature, how.over)


def _pairs(student: nn.Module, batch: Batch, config: ObjectiveConfig) -> Iterator[Term]:
    """Cosub's terms: both halves of one pass over the doubled batch, which drop other blocks."""
    for i, view in enumerate(batch.views):
        first, second = wide(student(torch.cat([view, view]))[0]).chunk(2)  # (2b, k) -> (b, k) each
        own, mutual = pair_loss(first, second, target_of(batch, i), config.labels)
        name = view_names(batch)[i]
        shown = {f"labels/{name}": own.detach(), f"mutual/{name}": mutual.detach()}
        yield Term((own + mutual) / len(batch.views), shown)


def _without_labels(student: nn.Module, batch: Batch, config: DinoConfig, teacher: Teacher) -> Iterator[Term]:
    """DINO's terms: the mean over all pairs of a view that is taught and another one of the same image."""
    lessons = [teacher(view) for view in batch.views[:TAUGHT]]
    pairs = TAUGHT * (len(batch.views) - 1)
    for i, view in enumerate(batch.views):
        others = [lesson for j, lesson in enumerate(lessons) if j != i]
        loss = self_distillation(wide(student(view)), others, config.student_temperature)
        yield Term(loss / pairs, {f"dino/{view_names(batch)[i]}": loss.detach() / len(others)})


def view_names(batch: Batch) -> list[str]:
    """What the log calls each view: its size; those of one size are counted, as ``96.1``, ``96.2``."""
    sizes = [str(Size(view.shape[-2], view.shape[-1])) for view in batch.views]
    return [size if sizes.count(size) == 1 else f"{size}.{sizes[: i + 1].count(size)}" for i, size in enumerate(sizes)]


def target_of(batch: Batch, view: int) -> Tensor:
    """The target of one view: (b,) or (b, k)."""
    target: Tensor = batch.targets.of(view)
    return target.float() if target.dtype == torch.bool else target


def wide(x: Tensor) -> Tensor:
    """Half precision widened to float32; anything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def window(batch: Batch, step: int, views_per_step: int | None) -> Batch:
    """The batch with the views that ``step`` sees."""
    if views_per_step is None:
        return batch
    places = seen_views(step, len(batch.views), views_per_step)
    seen = slice(places.start, places.stop)
    return replace(batch, views=batch.views[seen], targets=batch.targets.window(seen))
