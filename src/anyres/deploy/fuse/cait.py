"""The deploy form of CaiT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import (
    Block,
    CentredNorm,
    Folded,
    Glance,
    Patches,
    after_norm,
    classifier,
    mlp,
    plain_norm,
    query_key_value,
)
from anyres.deploy.fuse.tables import Positions
from anyres.models import cait
from anyres.ops import fold
from anyres.ops.mixed_heads import NEVER, in_lanes, softmax, talking_heads
from anyres.ops.resample import resample_table

MOST_HEADS = 8
"""A traced program mixes up to so many heads by sums; its size grows with their square."""


class TalkingHeads(nn.Module):
    """Self-attention of normalised tokens whose heads are mixed before the softmax and after it.

    The bias of the first mixing is the same for all keys, so the softmax does not see it. Mixing heads is a matrix
    product with the scores where PyTorch runs it, and a sum per head, of whole planes, in a traced program: those
    compilers make one pass of it with the softmax (OpenVINO bf16: 0.76 of the time of this attention).
    """

    def __init__(self, own: cait.TalkingHeads, norm: nn.LayerNorm, gamma: Tensor) -> None:
        super().__init__()
        self.heads = own.heads
        self.qkv = fold.beside(query_key_value(own.qkv, norm, own.heads))
        self.before = fold.constant(own.proj_l.weight, own.proj_l.weight)
        self.after = fold.constant(own.proj_w.weight, own.proj_w.weight)
        self.bias = fold.constant(own.proj_w.bias, own.proj_w.bias)
        self.proj = fold.centred(fold.before_scale(own.proj, gamma))
        self.talk: Callable[..., Tensor] = talking_heads

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        summed = torch.compiler.is_compiling() and self.heads <= MOST_HEADS and self.talk is talking_heads
        x = self.proj(self.by_sums(x) if summed else self.by_products(x))
        return x

    def by_products(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # (b, n, 3c) -> (b, n, 3, g, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, n, d)
        return self.talk(query, key, value, self.before, None, self.after, self.bias)

    def by_sums(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """As ``by_products``; some zeros are normalised tokens too, whose keys nobody sees.

        The heads are the outermost axis: one head's plane lies in one piece, so that taking the heads apart and putting
        them together moves nothing.
        """
        n, channels = x.shape[1:]
        weight, bias = self.qkv.weight, self.qkv.bias
        query = F.linear(x, weight[:channels], bias[:channels]).reshape(-1, n, self.heads, channels // self.heads)
        others = F.linear(in_lanes(x), weight[channels:], bias[channels:])
        others = others.reshape(-1, others.shape[1], 2, self.heads, channels // self.heads)
        key, value = others.permute(2, 3, 0, 1, 4).unbind(0)  # each (g, b, m, d)
        seen = F.pad(x.new_ones(n), (0, key.shape[2] - n))
        planes = (query.permute(2, 0, 1, 3) @ key.mT).unbind(0)  # (g, b, n, d) x (g, b, d, m) -> g of (b, n, m)
        scores = torch.stack([plane + NEVER * (1 - seen) for plane in mixed(planes, self.before)])
        planes = softmax(scores).to(value.dtype).unbind(0)
        after = zip(mixed(planes, self.after), self.bias.unbind(), strict=True)
        heads = torch.stack([plane + b * seen for plane, b in after]) @ value
        return heads.permute(1, 2, 0, 3).flatten(2)  # (g, b, n, d) -> (b, n, g, d) -> (b, n, c)


def mixed(planes: Sequence[Float[Tensor, "b n m"]], weight: Float[Tensor, "g g"]) -> list[Float[Tensor, "b n m"]]:
    """Head h of the result is the sum of weight[h, j] * planes[j]."""
    rows = [row.unbind() for row in weight.unbind()]
    return [reduce(add, (w * plane for w, plane in zip(row, planes, strict=True))) for row in rows]


class FoldedCaiT(Folded):
    """The trunk, then two looks of the class token at its patches, which are normalised once for both."""

    def __init__(self, model: cait.CaiT) -> None:
        super().__init__(model)
        trunk: list[Any] = list(model.blocks)
        last: list[Any] = list(model.blocks_token_only)
        self.patches = Patches(model.patch_embed, less_mean=True)
        self.positions = Positions(fold.less_mean(model.pos_embed), model.config.grid, resample_table)
        self.blocks = nn.Sequential()
        for block in trunk:
            attn = TalkingHeads(block.attn, block.norm1, block.gamma_1)
            think = mlp([(block.norm2, block.mlp, block.gamma_2)], less_mean=True)
            self.blocks.append(Block(CentredNorm(block.norm1), attn, think))
        self.token = fold.constant(model.cls_token, model.cls_token)
        self.norm = plain_norm(model.norm)
        self.looks, self.mlps = nn.ModuleList(), nn.ModuleList()
        for block in last:
            self.looks.append(look(block.attn, block.norm1, block.gamma_1))
            self.mlps.append(mlp([(block.norm2, block.mlp, block.gamma_2)]))
        self.head = classifier(model.norm, model.head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        tokens, grid = self.patches(x)
        patches = self.norm(self.blocks(tokens + self.positions(grid)))
        token = self.token.expand(patches.shape[0], -1, -1)
        for look_at, think in zip(self.looks, self.mlps, strict=True):
            normed = self.norm(token)
            token = token + look_at(normed, torch.cat((normed, patches), dim=1))
            token = token + think(self.norm(token))
        x = self.head(token)
        return x


def look(own: cait.ClassAttention, norm: nn.LayerNorm, gamma: Tensor) -> Glance:
    """Class attention for normalised tokens, the scale and γ inside."""
    query, key, value = (after_norm(layer, norm) for layer in (own.q, own.k, own.v))
    query = fold.times(query, (query.out_features // own.heads) ** -0.5)
    return Glance(own.heads, query, key, value, fold.before_scale(own.proj, gamma))
