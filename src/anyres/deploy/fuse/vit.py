"""The deploy form of DeiT, DeiT III, Three things and DINO: one plain vision transformer for them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import (
    Block,
    CenteredNorm,
    ClassTokenBlock,
    Folded,
    Patches,
    QueryOnlyAttention,
    attend,
    classifier,
    mlp,
    query_key_value,
)
from anyres.deploy.fuse.tables import Positions
from anyres.models import deit, deit3, dino
from anyres.models.dino import resample_positions
from anyres.ops import fold
from anyres.ops.resample import resample_table

Branches = Sequence[tuple[nn.LayerNorm, Any, Tensor | None]]
"""What is computed of one input and added: norm, SelfAttention or Mlp, and gamma."""


class Attention(nn.Module):
    """Self-attention of normalised tokens: the norm's affine part, the scale and γ are in its two linear layers."""

    def __init__(self, heads: int, qkv: nn.Linear, proj: nn.Linear) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = qkv
        self.proj = proj

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # (b, t, 3c) -> (b, t, 3, g, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, t, d)
        x = self.proj(attend(query, key, value))
        return x


class FoldedViT(Folded):
    """Patches with positions, special tokens before them, blocks, the special tokens' logits.

    No token has a mean over its channels (``CenteredNorm``).
    """

    def __init__(self, model: deit.DeiT | deit3.DeiT3 | dino.DINO) -> None:
        super().__init__(model)
        special, table, heads = ends(model)
        count, embed = special.shape[1], cast(Any, model.patch_embed)
        blocks: list[Any] = list(model.blocks)
        self.patches = Patches(embed, center=True)
        self.special = fold.constant(fold.center(special), table)
        carry = resample_positions if isinstance(model, dino.DINO) else resample_table
        self.positions = Positions(fold.center(table), model.config.grid, carry)
        self.blocks = nn.Sequential()
        for number, block in enumerate(blocks, start=1):
            attentions, mlps = branches(block)
            query, key, value, proj, g = packed(attentions)
            norm = CenteredNorm(block.norm1)
            if number < len(blocks):
                attn = Attention(g, fold.concat_outputs([query, key, value]), proj)
                self.blocks.append(Block(norm, attn, mlp(mlps, center=True)))
            else:
                only = QueryOnlyAttention(g, query, key, value, proj)
                self.blocks.append(ClassTokenBlock(norm, only, mlp(mlps), count))
        self.head = classifier(model.norm, *heads)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        tokens, grid = self.patches(x)
        tokens = tokens + self.positions(grid)
        tokens = torch.cat((self.special.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        x = self.head(self.blocks(tokens))
        return x


def ends(model: deit.DeiT | deit3.DeiT3 | dino.DINO) -> tuple[Tensor, Tensor, list[nn.Module]]:
    """The special tokens (1, s, c) with their positions, the patches' table (1, n, c), and a head for each token."""
    if isinstance(model, deit3.DeiT3):
        return model.cls_token, model.pos_embed, [model.head]
    if isinstance(model, dino.DINO) or not model.config.distilled:
        return model.cls_token + model.pos_embed[:, :1], model.pos_embed[:, 1:], [model.head]
    special = torch.cat((model.cls_token, model.dist_token), dim=1)
    return special + model.pos_embed[:, :2], model.pos_embed[:, 2:], [model.head, model.head_dist]


def branches(block: Any) -> tuple[Branches, Branches]:
    """The attentions and the MLPs of a block of any of the families."""
    if isinstance(block, deit3.ParallelBlock):
        return (
            ((block.norm1, block.attn, block.gamma_1), (block.norm11, block.attn1, block.gamma_1_1)),
            ((block.norm2, block.mlp, block.gamma_2), (block.norm21, block.mlp1, block.gamma_2_1)),
        )
    gammas = (block.gamma_1, block.gamma_2) if isinstance(block, deit3.Block) else (None, None)
    return ((block.norm1, block.attn, gammas[0]),), ((block.norm2, block.mlp, gammas[1]),)


def packed(attentions: Branches) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear, int]:
    """Queries, keys, values and projection of attentions side by side, as one of all their heads; and how many.

    The projection gives no mean over the channels (``CenteredNorm``).
    """
    parts = [query_key_value(attn.qkv, norm, attn.heads) for norm, attn, _ in attentions]
    query, key, value = (fold.concat_outputs(part) for part in zip(*parts, strict=True))
    projections = [fold.fold_output_scale(attn.proj, gamma) for _, attn, gamma in attentions]
    proj = fold.center_output(fold.sum_outputs(projections))
    return query, key, value, proj, sum(attn.heads for _, attn, _ in attentions)
