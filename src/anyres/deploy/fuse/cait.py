"""The deploy form of CaiT."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import (
    Block,
    CenteredNorm,
    Folded,
    Patches,
    QueryOnlyAttention,
    after_norm,
    classifier,
    mlp,
    plain_norm,
    query_key_value,
)
from anyres.deploy.fuse.tables import Positions
from anyres.deploy.fuse.tracing import is_tracing_for_cpu
from anyres.models import cait
from anyres.ops import fold
from anyres.ops.mixed_heads import MASKED, pad_keys, softmax, talking_heads
from anyres.ops.resample import resample_table

MOST_HEADS = 8
"""A program for a CPU mixes up to this many heads by sums; its size grows with their square."""


class TalkingHeads(nn.Module):
    """Self-attention of normalised tokens whose heads are mixed before the softmax and after it.

    The bias of the first mixing is the same for all keys, so it cancels in the softmax. Heads are mixed by a matrix
    product with the scores. A program for a CPU (``is_tracing_for_cpu``) sums whole planes per head instead, which its
    compiler merges with the softmax (OpenVINO bf16: 0.76 of the time of this attention).
    """

    def __init__(self, own: cait.TalkingHeads, norm: nn.LayerNorm, gamma: Tensor) -> None:
        super().__init__()
        self.heads = own.heads
        self.qkv = fold.concat_outputs(query_key_value(own.qkv, norm, own.heads))
        self.before = fold.constant(own.proj_l.weight, own.proj_l.weight)
        self.after = fold.constant(own.proj_w.weight, own.proj_w.weight)
        self.bias = fold.constant(own.proj_w.bias, own.proj_w.bias)
        self.proj = fold.center_output(fold.fold_output_scale(own.proj, gamma))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        summed = is_tracing_for_cpu() and self.heads <= MOST_HEADS
        x = self.proj(self.by_sums(x) if summed else self.by_products(x))
        return x

    def by_products(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # (b, n, 3c) -> (b, n, 3, g, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, n, d)
        return talking_heads(query, key, value, self.before, None, self.after, self.bias)

    def by_sums(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """As ``by_products``, with padded keys that are masked out.

        The heads are the outermost axis: one head's plane lies in one piece, so that taking the heads apart and putting
        them together moves nothing.
        """
        n, channels = x.shape[1:]
        weight, bias = self.qkv.weight, self.qkv.bias
        query = F.linear(x, weight[:channels], bias[:channels]).reshape(-1, n, self.heads, channels // self.heads)
        others = F.linear(pad_keys(x), weight[channels:], bias[channels:])
        others = others.reshape(-1, others.shape[1], 2, self.heads, channels // self.heads)
        key, value = others.permute(2, 3, 0, 1, 4).unbind(0)  # each (g, b, m, d)
        seen = F.pad(x.new_ones(n), (0, key.shape[2] - n))
        planes = (query.permute(2, 0, 1, 3) @ key.mT).unbind(0)  # (g, b, n, d) x (g, b, d, m) -> g of (b, n, m)
        scores = torch.stack([plane + MASKED * (1 - seen) for plane in mixed(planes, self.before)])
        planes = softmax(scores).to(value.dtype).unbind(0)
        after = zip(mixed(planes, self.after), self.bias.unbind(), strict=True)
        heads = torch.stack([plane + b * seen for plane, b in after]) @ value
        return heads.permute(1, 2, 0, 3).flatten(2)  # (g, b, n, d) -> (b, n, g, d) -> (b, n, c)


def mixed(planes: Sequence[Float[Tensor, "b n m"]], weight: Float[Tensor, "g g"]) -> list[Float[Tensor, "b n m"]]:
    """Head h of the result is the sum of weight[h, j] * planes[j]."""
    rows = [row.unbind() for row in weight.unbind()]
    return [reduce(add, (w * plane for w, plane in zip(row, planes, strict=True))) for row in rows]


class FoldedCaiT(Folded):
    """The trunk, then two blocks of class attention over the patches, which are normalized once for both."""

    def __init__(self, model: cait.CaiT) -> None:
        super().__init__(model)
        trunk: list[Any] = list(model.blocks)
        last: list[Any] = list(model.blocks_token_only)
        self.patches = Patches(model.patch_embed, center=True)
        self.positions = Positions(fold.center(model.pos_embed), model.config.grid, resample_table)
        self.blocks = nn.Sequential()
        for block in trunk:
            attn = TalkingHeads(block.attn, block.norm1, block.gamma_1)
            think = mlp([(block.norm2, block.mlp, block.gamma_2)], center=True)
            self.blocks.append(Block(CenteredNorm(block.norm1), attn, think))
        self.token = fold.constant(model.cls_token, model.cls_token)
        self.norm = plain_norm(model.norm)
        self.class_attentions, self.mlps = nn.ModuleList(), nn.ModuleList()
        for block in last:
            self.class_attentions.append(class_attention(block.attn, block.norm1, block.gamma_1))
            self.mlps.append(mlp([(block.norm2, block.mlp, block.gamma_2)]))
        self.head = classifier(model.norm, model.head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        tokens, grid = self.patches(x)
        patches = self.norm(self.blocks(tokens + self.positions(grid)))
        token = self.token.expand(patches.shape[0], -1, -1)
        for attend, think in zip(self.class_attentions, self.mlps, strict=True):
            normed = self.norm(token)
            token = token + attend(normed, torch.cat((normed, patches), dim=1))
            token = token + think(self.norm(token))
        x = self.head(token)
        return x


def class_attention(own: cait.ClassAttention, norm: nn.LayerNorm, gamma: Tensor) -> QueryOnlyAttention:
    """Class attention for normalised tokens, the scale and γ inside."""
    query, key, value = (after_norm(layer, norm) for layer in (own.q, own.k, own.v))
    query = fold.scale(query, (query.out_features // own.heads) ** -0.5)
    return QueryOnlyAttention(own.heads, query, key, value, fold.fold_output_scale(own.proj, gamma))
