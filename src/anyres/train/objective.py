"""What is minimised: cross-entropy at every view, and ResFormer's chain of scale consistency between them.

ResFormer: Scaling ViTs with Multi-Resolution Training (Tian et al., CVPR 2023), section 3.
The largest view learns from the labels alone; every smaller one also from the feature of the view just above it.
The teacher's feature is detached, so each term may be back-propagated before the next view runs: the memory of one
view, the gradients of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import config
from anyres.flow import Batch, Size

Target = Literal["cls", "gap", "logit"]


@config
class ObjectiveConfig:
    """``consistency`` and ``target`` name the distance and the feature it compares (ResFormer's
    ``--distillation-type`` and ``--distillation-target``); ``weight`` is its alpha, added to the cross-entropy;
    ``temperature`` is read by ``soft`` alone. ``none`` is cross-entropy at every view."""

    consistency: Literal["none", "smooth_l1", "l2", "cosine", "soft"] = "none"
    target: Target = "cls"
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.consistency == "soft" and self.target != "logit":
            raise ValueError("objective.consistency=soft compares class distributions: set objective.target=logit")
        if not self.temperature > 0:
            raise ValueError("objective.temperature must be above 0")


@runtime_checkable
class Backbone(Protocol):
    """The part of timm's contract that the objective uses, and ``patch_tokens`` for the ``gap`` target."""

    def forward_features(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...
    def get_classifier(self) -> nn.Module: ...
    def patch_tokens(self, x: Tensor) -> Tensor: ...


class Student(nn.Module):
    """A backbone that also returns the feature its views are compared by.

    ``cls``: the vector before the classifier (a ViT's normalised class token, else the pooled feature);
    ``gap``: the mean of the normalised patch tokens; ``logit``: the logits.
    """

    def __init__(self, model: Backbone, target: Target) -> None:
        super().__init__()
        self.model = model
        self.target = target

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b c"]]:
        tokens = self.model.forward_features(x)
        pooled = self.model.forward_head(tokens, pre_logits=True)
        logits: Tensor = self.model.get_classifier()(pooled)
        if self.target == "cls":
            return logits, pooled
        if self.target == "gap":
            return logits, self.model.patch_tokens(tokens).mean(1)
        return logits, logits


@dataclass(frozen=True)
class Term:
    """One view's share of the loss: ``loss`` (scalar, already divided by the number of views) is back-propagated;
    ``shown`` are detached scalars for the log."""

    loss: Tensor
    shown: dict[str, Tensor]


def terms(student: nn.Module, batch: Batch, config: ObjectiveConfig) -> Iterator[Term]:
    """The terms of one batch, largest view first; their losses sum to the total (mean over views).

    ``student`` maps (b, 3, h, w) to (logits (b, k), feature (b, c)). Loss of view i: cross-entropy plus
    ``weight`` x distance to the detached feature of view i-1 (absent for the first).
    """
    teacher: Tensor | None = None
    for i, view in enumerate(batch.views):
        target = batch.target[i] if batch.target.ndim == 3 else batch.target
        logits, feature = (_wide(x) for x in student(view))
        name = str(Size(view.shape[-2], view.shape[-1]))
        loss = F.cross_entropy(logits, target)
        shown = {f"ce/{name}": loss.detach()}
        if teacher is not None and config.consistency != "none":
            apart = distance(feature, teacher, config)
            shown[f"consistency/{name}"] = apart.detach()
            loss = loss + config.weight * apart
        teacher = feature.detach()
        yield Term(loss / len(batch.views), shown)


def _wide(x: Tensor) -> Tensor:
    """Half precision widened to float32; anything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def distance(student: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"], config: ObjectiveConfig) -> Tensor:
    """How far a view's feature is from that of the next larger one: a scalar, 0 when they agree.

    ``smooth_l1`` whitens the teacher first (layer norm over channels, no affine, eps 1e-6), as ResFormer's code does;
    ``l2`` and ``cosine`` do not. ``soft`` is KL(teacher || student) at the temperature, times its square, per element.
    """
    if config.consistency == "smooth_l1":
        return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6))
    if config.consistency == "l2":
        return F.mse_loss(student, teacher)
    if config.consistency == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-6).mean()
    tau = config.temperature
    log_student, log_teacher = F.log_softmax(student / tau, -1), F.log_softmax(teacher / tau, -1)
    # The official code gives log-probabilities as if they were probabilities (trap F-8); this is the KL it meant.
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * tau**2 / student.numel()
