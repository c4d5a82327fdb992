"""Norms of maps by name, for what is learned without pretrained weights or in small batches."""

from __future__ import annotations

import math
from collections.abc import Callable

from timm.layers import LayerNorm2d
from torch import nn

NormLayer = Callable[[int], nn.Module] | None
"""Channels -> a norm of maps; None: none."""


def new_norm(norm: str) -> NormLayer:
    """``none``, ``layer`` (over the channels of each position) or ``group``."""
    if norm == "layer":
        return LayerNorm2d  # type: ignore[no-any-return]
    return group_norm if norm == "group" else None


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups as in its paper (Wu and He, ECCV 2018, arXiv:1803.08494), but of no less than eight channels: one
    position of a pooled map must have something to be normalised over."""
    return nn.GroupNorm(math.gcd(32, max(channels // 8, 1), channels), channels)
