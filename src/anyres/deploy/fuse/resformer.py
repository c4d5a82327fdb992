"""The deploy form of ResFormer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import (
    CenteredNorm,
    ClassTokenBlock,
    Folded,
    Patches,
    QueryOnlyAttention,
    attend,
    classifier,
    mlp,
    query_key_value,
    to_maps,
    to_tokens,
)
from anyres.deploy.fuse.tables import GridCache
from anyres.models import resformer
from anyres.ops import fold
from anyres.ops.patch import Grid
from anyres.ops.residual import add_norm


class GlobalPosition(GridCache):
    """The sine table of the grid through the depthwise convolution, (1, n, c)."""

    def __init__(self, own: resformer.GlobalPosition) -> None:
        super().__init__()
        conv = own.embed_layer
        self.table = fold.constant(conv.weight, conv.weight)
        self.bias = fold.constant(fold.bias_of(conv), conv.weight)

    def make(self, grid: Grid) -> Float[Tensor, "1 n c"]:
        weight = self.table
        sine = resformer.sine_table(grid, weight.shape[0], weight.device).to(weight.dtype)
        return fold.center(to_tokens(F.conv2d(sine, weight, self.bias, padding=1, groups=weight.shape[0])))


class Attention(nn.Module):
    """Softmax attention of normalised tokens plus the local term of the patches' values.

    The local kernel of one head is repeated for all, so the values are one map of c channels, which lies in memory as
    they do.
    """

    def __init__(self, own: resformer.Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.heads = own.heads
        self.qkv = fold.concat_outputs(query_key_value(own.qkv, norm, own.heads))
        weight, bias = own.get_v.weight, fold.bias_of(own.get_v)
        self.local = fold.depthwise(weight.repeat(own.heads, 1, 1, 1), bias.repeat(own.heads), weight)
        self.proj = fold.center_output(own.proj)

    def forward(self, x: Float[Tensor, "b t c"], grid: Grid) -> Float[Tensor, "b t c"]:
        packed = self.qkv(x)
        qkv = packed.reshape(*x.shape[:2], 3, self.heads, -1)  # (b, t, 3c) -> (b, t, 3, g, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, t, d)
        local = to_tokens(self.local(to_maps(packed[:, 1:, -x.shape[2] :], grid)))
        x = self.proj(attend(query, key, value) + F.pad(local, (0, 0, 1, 0)))
        return x


class Block(nn.Module):
    """x + attention(norm x, grid), then x + mlp(norm x)."""

    def __init__(self, own: resformer.Block) -> None:
        super().__init__()
        self.norm = CenteredNorm(own.norm1)
        self.attn = Attention(own.attn, own.norm1)
        self.mlp = mlp([(own.norm2, own.mlp, None)], center=True)

    def forward(self, x: Float[Tensor, "b t c"], grid: Grid) -> Float[Tensor, "b t c"]:
        x, normed = add_norm(x, self.attn(self.norm(x), grid), None, None, self.norm)
        x = x + self.mlp(normed)
        return x


class FoldedResFormer(Folded):
    """Patches with positions, the class token before them, blocks; the class token's logits.

    The local term gives the class token nothing, so the last block has none. No token has a mean over its channels
    (``CenteredNorm``).
    """

    def __init__(self, model: resformer.ResFormer) -> None:
        super().__init__(model)
        *blocks, last = list[Any](model.blocks)
        self.patches = Patches(model.patch_embed, center=True)
        self.token = fold.constant(fold.center(model.cls_token), model.cls_token)
        self.positions = GlobalPosition(model.pos_embed)
        self.blocks = nn.ModuleList(Block(block) for block in blocks)
        query, key, value = query_key_value(last.attn.qkv, last.norm1, last.attn.heads)
        attn = QueryOnlyAttention(last.attn.heads, query, key, value, fold.center_output(last.attn.proj))
        self.last = ClassTokenBlock(CenteredNorm(last.norm1), attn, mlp([(last.norm2, last.mlp, None)]), 1)
        self.head = classifier(model.norm, model.head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        tokens, grid = self.patches(x)
        tokens = tokens + self.positions(grid)
        tokens = torch.cat((self.token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens, grid)
        x = self.head(self.last(tokens))
        return x
