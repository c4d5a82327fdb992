"""The two linear layers that every family has, and how all families draw their first weights."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU, linear: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


@torch.no_grad()
def trunc_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill ``tensor`` from N(0, std²) cut off at -2 and 2, by the inverse of the distribution function.

    Draws what timm draws for the same state of the generator, in every version of PyTorch, whose own function has
    changed its way.
    """
    edge = math.erf(2 / std / math.sqrt(2))
    return tensor.uniform_(-edge, edge).erfinv_().mul_(std * math.sqrt(2)).clamp_(-2, 2)
