"""The deploy form of ResT (v1)."""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import Folded, attend, mean_classifier, to_maps, to_tokens
from anyres.deploy.fuse.spatial_reduction import FusedQKV, PixelAttention, SpatialReduction, blocks_of
from anyres.deploy.fuse.tracing import is_tracing_for_cpu
from anyres.models import rest
from anyres.ops import fold
from anyres.ops.mixed_heads import mix, normed_heads, normed_padded, normed_plane, pad_keys
from anyres.ops.patch import Grid

MOST_HEADS = 2
"""With more heads attention is never computed among the tokens: it multiplies less for the smallest maps alone."""


class Attention(nn.Module):
    """EMSA: softmax attention, or with several heads InstanceNorm(softmax(mix(Q Kᵀ))) V.

    The bias of the mixing is the same for all keys, so the softmax does not see it. Where few heads look at a small
    map, on a CPU, ``AbsorbedProjections`` computes it. A program for a CPU pads its keys.
    """

    def __init__(self, own: rest.Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.heads = own.heads
        self.reduction = own.reduction
        self.project = FusedQKV(own, norm) if own.reduction == 1 else SpatialReduction(own)
        self.absorbed = AbsorbedProjections(own) if own.reduction > 1 and own.heads <= MOST_HEADS else None
        if own.heads > 1:
            weight = own.transform_conv.weight
            self.mixing = fold.constant(weight.flatten(1), weight)  # (g, g, 1, 1) -> (g, g)
        self.proj = fold.fold_output_scale(own.proj, None)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        if self.absorbed is not None and x.device.type == "cpu" and self.saves(x.shape[2], grid):
            x = self.absorbed(x, grid)
            return x
        query, key, value = (self.split(part) for part in self.project(x, grid)[:3])
        if self.heads == 1:
            heads = attend(query, key, value)
        elif is_tracing_for_cpu():
            scores = mix(query @ pad_keys(key).mT, self.mixing, None)
            heads = normed_padded(scores, value).transpose(1, 2).flatten(2)  # -> (b, n, g, d) -> (b, n, c)
        else:
            heads = normed_heads(query, key, value, self.mixing, None)
        x = self.proj(heads)
        return x

    def saves(self, channels: int, grid: Grid) -> bool:
        """Whether ``AbsorbedProjections`` multiplies less at this grid; False where an exported size is free."""
        if not all(isinstance(side, int) for side in grid):
            return False
        n, m = grid[0] * grid[1], math.prod(-(-side // self.reduction) for side in grid)
        return (n + m) * channels + n * m > self.heads * m * (channels + n)

    def split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b g n d"]:
        """Channels into heads."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b, n, c) -> (b, n, g, d) -> (b, g, n, d)


class AbsorbedProjections(nn.Module):
    """The same attention with query, key, value and output projections absorbed into the shrunken map's tokens.

    A query's product with a key, mixed over the heads, is that of the token itself with a vector which is linear in the
    key's token; what the projection makes of a value is linear in the value's. Both are made for the few tokens of the
    shrunken map, c channels for each head. Of the query's bias a number for each key is left; what the key's bias gives
    is the same for all keys, so the softmax does not see it.
    """

    def __init__(self, own: rest.Attention) -> None:
        super().__init__()
        g, like, narrow = own.heads, own.q.weight, SpatialReduction(own)
        mixing = fold.to_float64(own.transform_conv.weight.flatten(1) if g > 1 else like.new_ones(1, 1))
        query, query_bias = by_head(narrow.q, g)
        both, both_bias = by_head(narrow.kv, 2 * g)
        (key, value), value_bias = both.chunk(2), both_bias[g:]
        out = fold.to_float64(own.proj.weight).view(like.shape[0], g, -1)  # (c, g, d)
        wanted = torch.einsum("hj,jdi,jdo->hoi", mixing, key, query).flatten(0, 1)
        said = torch.einsum("ohd,hdi->hoi", out, value).flatten(0, 1)
        said_bias = torch.einsum("ohd,hd->ho", out, value_bias).flatten()
        self.heads = g
        self.sr, self.norm = narrow.sr, narrow.norm
        self.made = fold.linear(torch.cat((wanted, said)), torch.cat((torch.zeros_like(said_bias), said_bias)), like)
        self.offset = fold.linear(torch.einsum("hj,jdi,jd->hi", mixing, key, query_bias), mixing.new_zeros(g), like)
        self.bias = fold.constant(fold.bias_of(own.proj), like)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        small = self.norm(to_tokens(self.sr(to_maps(x, grid))))
        made = self.made(small).reshape(*small.shape[:2], 2, self.heads, -1)  # (b, m, 2gc) -> (b, m, 2, g, c)
        key, value = made.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, m, c)
        offset = self.offset(small).mT[:, :, None]  # (b, m, g) -> (b, g, 1, m)
        if self.heads == 1:
            return attend(x[:, None], key, value, offset) + self.bias
        if is_tracing_for_cpu():
            heads = normed_padded(x[:, None] @ pad_keys(key).mT, value, offset)  # (b, g, n, c)
        else:
            heads = normed_plane(x[:, None] @ key.mT + offset, value)
        x = reduce(add, heads.unbind(1)) + self.bias
        return x


def by_head(layer: nn.Linear, heads: int) -> tuple[Float[Tensor, "g d c"], Float[Tensor, "g d"]]:
    """Weights and bias in float64, the outputs of each head apart."""
    return fold.to_float64(layer.weight).view(heads, -1, layer.in_features), fold.bias_of(layer).view(heads, -1)


class Stem(nn.Module):
    """Three convolutions, the first two with ReLU, then pixel attention."""

    def __init__(self, own: rest.Stem) -> None:
        super().__init__()
        first, second = fold.convolution(own.conv1, own.norm1), fold.convolution(own.conv2, own.norm2)
        self.proj = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), fold.convolution(own.conv3))
        self.pos = PixelAttention(own.pos.pa_conv)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c ho wo"]:
        x = self.pos(self.proj(x))
        return x


class FoldedResT(Folded):
    """Four stages of blocks, each after a convolution; the mean of the last tokens."""

    def __init__(self, model: rest.ResT) -> None:
        super().__init__(model)
        self.embeds = nn.ModuleList([Stem(model.stem)])
        for embed in (model.patch_embed_2, model.patch_embed_3, model.patch_embed_4):
            self.embeds.append(
                nn.Sequential(fold.convolution(embed.conv, embed.norm), PixelAttention(embed.pos.pa_conv))
            )
        stages = (model.stage1, model.stage2, model.stage3, model.stage4)
        self.stages = nn.ModuleList(blocks_of(stage, Attention) for stage in stages)
        self.head = mean_classifier(model.norm, model.head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        for embed, stage in zip(self.embeds, self.stages, strict=True):
            x = embed(x)
            grid = x.shape[2], x.shape[3]
            tokens = to_tokens(x)
            for block in cast(nn.ModuleList, stage):
                tokens = block(tokens, grid)
            x = to_maps(tokens, grid)
        x = self.head(tokens)
        return x
