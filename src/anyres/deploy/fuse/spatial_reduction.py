"""What the deploy forms of ResT and ResTv2 share: spatial-reduction attention and pixel attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import after_norm, mlp, plain_norm, to_maps, to_tokens
from anyres.models import rest, restv2
from anyres.ops import fold
from anyres.ops.patch import Grid
from anyres.ops.residual import add_norm

Tokens = Float[Tensor, "b _ c"]


class PixelAttention(nn.Module):
    """x * sigmoid(depthwise 3x3 of x)."""

    def __init__(self, own: nn.Conv2d) -> None:
        super().__init__()
        self.conv = fold.convolution(own)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        gate: Tensor = self.conv(x)
        return x * gate.sigmoid()


class SpatialReduction(nn.Module):
    """Tokens -> their queries, and keys and values of the map shrunk r times, with its grid.

    The scale is in the query, the affine part of the small map's norm in keys and values. That of the tokens' norm is
    not folded: the shrinking convolution pads with zeros, so at the border its bias would be another.
    """

    def __init__(self, own: rest.Attention | restv2.Attention) -> None:
        super().__init__()
        self.q = fold.scale(own.q, (own.q.out_features // own.heads) ** -0.5)
        self.sr = fold.convolution(own.sr)
        self.norm = plain_norm(own.sr_norm)
        self.kv = after_norm(own.kv, own.sr_norm)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> tuple[Tokens, Tokens, Tokens, Grid]:
        maps = self.sr(to_maps(x, grid))
        keys, values = self.kv(self.norm(to_tokens(maps))).chunk(2, dim=2)  # each (b, m, c), channel = head * d + j
        return self.q(x), keys, values, (maps.shape[2], maps.shape[3])


class FusedQKV(nn.Module):
    """Normalized tokens -> queries, keys and values by one layer, where the map is not shrunk."""

    def __init__(self, own: rest.Attention | restv2.Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        query = fold.scale(own.q, (own.q.out_features // own.heads) ** -0.5)
        self.qkv = after_norm(fold.concat_outputs([query, own.kv]), norm)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> tuple[Tokens, Tokens, Tokens, Grid]:
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

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        x, normed = add_norm(x, self.attn(self.norm(x), grid), None, None, self.mlp_norm)
        x = x + self.mlp(normed)
        return x


def blocks_of(stage: Iterable[Any], attention: Callable[[Any, nn.LayerNorm], nn.Module]) -> nn.ModuleList:
    """A stage's blocks, each with the family's attention made of its own and its norm."""
    made = nn.ModuleList()
    for own in stage:
        norm = plain_norm(own.norm1) if own.attn.reduction == 1 else fold.layer_norm(own.norm1)
        made.append(Block(norm, attention(own.attn, own.norm1), mlp([(own.norm2, own.mlp, None)])))
    return made
