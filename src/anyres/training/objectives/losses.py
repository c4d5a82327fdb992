"""The losses, each a scalar from logits or features: labels, a teacher, scale consistency, sub-models, DINO's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

LabelLoss = Literal["ce", "bce", "soft_bce"]
Distance = Literal["smooth_l1", "l2", "cosine", "soft"]
Target = Int64[Tensor, " b"] | Float[Tensor, "b k"]


def label_loss(logits: Float[Tensor, "b k"], target: Target, kind: LabelLoss) -> Tensor:
    """What the labels say: class indices, soft targets as mixing and smoothing make them, or several classes each.

    ``ce``: cross-entropy, mean over the batch (label smoothing is in the soft target). ``bce``: DeiT III's: every
    class with any share of the target is wholly right (y > 0 -> 1), binary cross-entropy, mean over batch and classes.
    ``soft_bce``: the same with the shares as they are, as several labels want it.
    """
    if kind == "ce":
        return F.cross_entropy(logits, target)
    right = shares(logits, target)
    return F.binary_cross_entropy_with_logits(logits, right if kind == "soft_bce" else (right > 0).to(logits.dtype))


def shares(logits: Float[Tensor, "b k"], target: Target) -> Float[Tensor, "b k"]:
    """Soft targets as they are, class indices as one-hot rows, in the dtype of ``logits``."""
    if target.ndim == 1:
        return F.one_hot(target.long(), logits.shape[-1]).to(logits.dtype)
    return target.to(logits.dtype)


def hard_distillation(logits: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"]) -> Tensor:
    """Cross-entropy with the teacher's decision as the label (DeiT, equation 3)."""
    return F.cross_entropy(logits, teacher.argmax(-1))


def soft_distillation(
    logits: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], temperature: float, over: Literal["element", "batch"]
) -> Tensor:
    """KL(teacher || student) at the temperature, times its square.

    ``over`` says what the sum over batch and classes is divided by: ``element``, as DeiT's code does, both; ``batch``,
    as most other code does, the images alone (trap D-16: k times as large).
    """
    log_student, log_teacher = F.log_softmax(logits / temperature, -1), F.log_softmax(teacher / temperature, -1)
    total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return total * temperature**2 / (logits.numel() if over == "element" else len(logits))


def distance(
    student: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"], kind: Distance, temperature: float = 1.0
) -> Tensor:
    """How far a view's feature is from that of the next larger one: 0 when they agree (recipes F3).

    ``smooth_l1`` whitens the teacher first (layer norm over channels, no affine, eps 1e-6), as ResFormer's code does;
    ``l2`` and ``cosine`` do not. ``soft`` is KL(teacher || student) at the temperature, times its square, per element
    (the official code gives log-probabilities as if they were probabilities, trap F-8; this is the KL it meant).
    """
    if kind == "smooth_l1":
        return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6))
    if kind == "l2":
        return F.mse_loss(student, teacher)
    if kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-6).mean()
    return soft_distillation(student, teacher, temperature, "element")


def pair_loss(
    first: Float[Tensor, "b k"], second: Float[Tensor, "b k"], target: Target, kind: LabelLoss
) -> tuple[Tensor, Tensor]:
    """Cosub: two sub-models of one network learn from the labels and from each other (recipes D9).

    Returns the two summands of the loss, from the labels and from each other; each is the mean of two terms, halved.
    All are binary cross-entropies, whatever ``kind``; ``bce`` makes targets 0 or 1 first, as it does elsewhere.
    """
    bce, labels = F.binary_cross_entropy_with_logits, shares(first, target)
    if kind == "bce":
        labels = (labels > 0).to(first.dtype)
    own = bce(first, labels) + bce(second, labels)
    mutual = bce(first, torch.sigmoid(second).detach()) + bce(second, torch.sigmoid(first).detach())
    return own / 4, mutual / 4


def self_distillation(
    scores: Float[Tensor, "b k"], lessons: Sequence[Float[Tensor, "b k"]], temperature: float
) -> Tensor:
    """DINO (recipes X3): the cross-entropy of a view's scores at the temperature with each lesson, summed over them.

    Each is a mean over the batch; a lesson is a teacher's shares, which sum to one.
    """
    log_shares = F.log_softmax(scores / temperature, -1)
    return -(torch.stack(list(lessons)).sum(0) * log_shares).sum(-1).mean()
