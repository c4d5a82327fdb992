"""A fresh linear classifier, as all families begin one."""

from __future__ import annotations

from torch import Tensor, nn

from anyres.ops.mlp import trunc_normal_


def new_head(features: int, num_classes: int, like: Tensor) -> nn.Linear | nn.Identity:
    """Linear layer (b, features) -> (b, num_classes), or the identity for 0 classes.

    Weights: truncated normal 0.02, bias 0; device and dtype as ``like``.
    """
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(features, num_classes).to(like)
    trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
