"""What the deploy forms of ResT and ResTv2 share: attention over a shrunken map, and pixel attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import after_norm, in_program, in_sixteens, mlp, plain_norm, to_maps, to_tokens
from anyres.models import rest, restv2
from anyres.ops import fold
from anyres.ops.patch import Grid
from anyres.ops.residual import add_norm

Tokens = Float[Tensor, "b _ c"]

ROWS = 1600
"""So many tokens' hidden layer stays in the cores' caches between an MLP's two products (OpenVINO bf16, AMX, all of
restv2_tiny: 1.03 times as fast by runs in turn, not confirmed by the benchmark: docs/lab.md)."""
MOST_PARTS = 16
"""A program for large pictures is not cut into more."""


class PixelAttention(nn.Module):
    """x * sigmoid(depthwise 3x3 of x)."""

    def __init__(self, own: nn.Conv2d) -> None:
        super().__init__()
        self.conv = fold.convolution(own)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        gate: Tensor = self.conv(x)
        return x * gate.sigmoid()


class Shrunk(nn.Module):
    """Tokens -> their queries, and keys and values of the map shrunk r times, with its grid.

    The scale is in the query, the affine part of the small map's norm in keys and values. That of the tokens' norm is
    not folded: the shrinking convolution pads with zeros, so at the border its bias would be another.
    """

    def __init__(self, own: rest.Attention | restv2.Attention) -> None:
        super().__init__()
        self.q = fold.times(own.q, (own.q.out_features // own.heads) ** -0.5)
        self.sr = fold.convolution(own.sr)
        self.norm = plain_norm(own.sr_norm)
        self.kv = after_norm(own.kv, own.sr_norm)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> tuple[Tokens, Tokens, Tokens, Grid]:
        maps = self.sr(to_maps(x, grid))
        keys, values = self.both(self.norm(to_tokens(maps)))
        return self.q(x), keys, values, (maps.shape[2], maps.shape[3])

    def both(self, small: Float[Tensor, "b m c"]) -> tuple[Tokens, Tokens]:
        """Keys and values, channel = head * d + j. In a traced program by a layer each, as OpenVINO would copy the
        halves of one answer (all of restv2_tiny: 1.01 to 1.02 times as fast)."""
        if torch.compiler.is_compiling():
            halves = zip(self.kv.weight.chunk(2), self.kv.bias.chunk(2), strict=True)
            keys, values = (F.linear(small, weight, bias) for weight, bias in halves)
        else:
            keys, values = self.kv(small).chunk(2, dim=2)
        return keys, values


class Packed(nn.Module):
    """Normalised tokens -> queries, keys and values by one layer, where the map is not shrunk.

    In a program for a CPU by a layer each, of tokens in sixteens: OpenVINO would copy the thirds of one answer.
    """

    def __init__(self, own: rest.Attention | restv2.Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        query = fold.times(own.q, (own.q.out_features // own.heads) ** -0.5)
        self.qkv = after_norm(fold.beside([query, own.kv]), norm)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> tuple[Tokens, Tokens, Tokens, Grid]:
        rows = x.shape[0] * x.shape[1]
        if in_program(x, rows):
            even = in_sixteens(x.flatten(0, 1), self.qkv)
            layers = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
            query, keys, values = (F.linear(even, *layer)[:rows].view(x.shape) for layer in layers)
        else:
            query, keys, values = self.qkv(x).chunk(3, dim=2)
        return query, keys, values, grid


class Block(nn.Module):
    """x + attention(norm x, grid), then x + mlp(norm x); the first norm keeps its affine part if the map is shrunk."""

    def __init__(self, norm: nn.LayerNorm, attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.attn = attn
        self.mlp_norm = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
        self.mlp = mlp
        self.add_norm = add_norm

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        x, normed = self.add_norm(x, self.attn(self.norm(x), grid), None, None, self.mlp_norm)
        x = x + in_parts(self.mlp, normed)
        return x


def in_parts(mlp: nn.Module, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """``mlp`` of tokens: in a program for a CPU, of fixed sides, about ``ROWS`` at a time."""
    rows = x.shape[0] * x.shape[1]
    parts = min(-(-rows // ROWS), MOST_PARTS) if in_program(x, rows) else 1
    if parts == 1:
        whole: Tensor = mlp(x)
        return whole
    part = -(-rows // parts // 16) * 16  # products of a multiple of 16 rows have no remainder
    return torch.cat([mlp(few) for few in torch.split(x.flatten(0, 1), part)]).view(x.shape)


def blocks_of(stage: Iterable[Any], attention: Callable[[Any, nn.LayerNorm], nn.Module]) -> nn.ModuleList:
    """A stage's blocks, each with the family's attention made of its own and its norm."""
    made = nn.ModuleList()
    for own in stage:
        norm = plain_norm(own.norm1) if own.attn.reduction == 1 else fold.layer_norm(own.norm1)
        made.append(Block(norm, attention(own.attn, own.norm1), mlp([(own.norm2, own.mlp, None)])))
    return made
