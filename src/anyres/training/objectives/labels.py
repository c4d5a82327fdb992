"""What labels say: one class, several, or shares of classes as mixing and smoothing make them."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from anyres.training.objective_config import LabelLoss

ClassTarget = Int64[Tensor, " b"] | Float[Tensor, "b k"]


def label_loss(
    logits: Float[Tensor, "b k"], target: ClassTarget, kind: LabelLoss, weights: Float[Tensor, " k"] | None = None
) -> Tensor:
    """Logits, and class indices or shares of each class -> a scalar.

    ``ce``: cross-entropy, mean over the batch (label smoothing is in the soft target). ``bce``: DeiT III's: every
    class with any share of the target is wholly right (y > 0 -> 1), binary cross-entropy, mean over batch and classes.
    ``soft_bce``: the same with the shares as they are, as several labels want it.

    ``weights``: how much each class's share of the target counts (None: all alike). The mean stays over the batch, not
    over the weights in it, so that parts of a batch add up to the whole.
    """
    if weights is not None:
        weights = weights.to(logits)
    if kind == "ce":
        return F.cross_entropy(logits, target if weights is None else shares(logits, target), weights)
    right = shares(logits, target)
    right = right if kind == "soft_bce" else (right > 0).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, right, pos_weight=weights)


def shares(logits: Float[Tensor, "b k"], target: ClassTarget) -> Float[Tensor, "b k"]:
    """Soft targets as they are, class indices as one-hot rows, in the dtype of ``logits``."""
    if target.ndim == 1:
        return F.one_hot(target.long(), logits.shape[-1]).to(logits.dtype)
    return target.to(logits.dtype)


def pair_loss(
    first: Float[Tensor, "b k"], second: Float[Tensor, "b k"], target: ClassTarget, kind: LabelLoss
) -> tuple[Tensor, Tensor]:
    """Two sub-models of one network learn from the labels and from each other (Co-training 2L submodels, section 3).

    Returns the two summands of the loss, from the labels and from each other; each is the mean of two terms, halved.
    All are binary cross-entropies, whatever ``kind``; ``bce`` makes targets 0 or 1 first, as it does elsewhere.
    """
    bce, labels = F.binary_cross_entropy_with_logits, shares(first, target)
    if kind == "bce":
        labels = (labels > 0).to(first.dtype)
    own = bce(first, labels) + bce(second, labels)
    mutual = bce(first, second.sigmoid().detach()) + bce(second, first.sigmoid().detach())
    return own / 4, mutual / 4
