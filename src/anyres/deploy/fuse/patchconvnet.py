"""The deploy form of PatchConvNet."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import (
    CenteredNorm,
    Folded,
    after_norm,
    classifier,
    mlp,
    plain_norm,
    to_maps,
    to_tokens,
)
from anyres.models import patchconvnet
from anyres.ops import fold
from anyres.ops.patch import Grid


class Block(nn.Module):
    """x + the convolutions of norm x: the norm's affine part is in the first 1x1, γ in the last.

    What is added to the trunk has no mean over the channels (``CenteredNorm``).
    """

    def __init__(self, own: patchconvnet.Block) -> None:
        super().__init__()
        layers: list[Any] = list(own.attn.qkv_pos)
        first, _, depthwise, _, excite, last = layers
        self.norm = CenteredNorm(own.norm1)
        self.first = after_norm(fold.pointwise(first), own.norm1)
        self.depthwise = fold.convolution(depthwise)
        self.gelu = nn.GELU()
        reduce, expand = fold.pointwise(excite.conv_reduce), fold.pointwise(excite.conv_expand)
        self.gate = nn.Sequential(reduce, nn.ReLU(), expand, nn.Sigmoid())
        self.last = fold.center_output(fold.fold_output_scale(fold.pointwise(last), own.gamma_1))

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        maps = self.depthwise(to_maps(self.gelu(self.first(self.norm(x))), grid))
        inner = to_tokens(self.gelu(maps))
        x = x + self.last(inner * self.gate(inner.mean(dim=1, keepdim=True)))
        return x


class Pooling(nn.Module):
    """What the class tokens, which no image has touched yet, see of normalised patches; γ and all else inside.

    Their queries are constants, so all scores are one product of the patches with constant vectors, the keys' bias
    unseen by the softmax. The values are made after weighing, by one layer with the projection, as weights sum to one.
    Without ``multi`` the class token sees itself too: a constant score and a constant token.
    """

    def __init__(self, own: patchconvnet.Aggregation, classes: Tensor) -> None:
        super().__init__()
        pooling, like = own.attn, classes
        key, value = after_norm(pooling.k, own.norm1), after_norm(pooling.v, own.norm1)
        asking = nn.functional.layer_norm(fold.to_float64(classes[0]), classes.shape[-1:], eps=own.norm1.eps)  # (k, c)
        ask = after_norm(pooling.q, own.norm1)
        query = asking @ fold.to_float64(ask.weight).T + fold.bias_of(ask)
        self.wanted = fold.constant(query @ fold.to_float64(key.weight) * query.shape[1] ** -0.5, like)  # (k, c)
        self.own: Tensor | None = None if pooling.multi else fold.constant(asking[None], like)
        self.norm = CenteredNorm(own.norm1)
        self.proj = fold.fold_output_scale(fold.compose(value, pooling.proj), own.gamma_1)

    def forward(self, patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b k c"]:
        seen = self.norm(patches)
        if self.own is not None:
            seen = torch.cat((self.own.expand(seen.shape[0], -1, -1), seen), dim=1)
        weights = (self.wanted @ seen.mT).softmax(dim=-1)  # (k, c) x (b, c, m) -> (b, k, m)
        x: Tensor = self.proj(weights @ seen)
        return x


class OneOutputEach(nn.Module):
    """Normalised class tokens (b, k, c) -> logits (b, k), each by its own vector."""

    def __init__(self, norm: nn.LayerNorm, head: nn.Module) -> None:
        super().__init__()
        linears = [linear for linear in head.modules() if isinstance(linear, nn.Linear)]
        stacked = after_norm(fold.concat_outputs(linears), norm)
        self.norm = plain_norm(norm)
        self.weight, self.bias = stacked.weight, stacked.bias

    def forward(self, x: Float[Tensor, "b k c"]) -> Float[Tensor, "b k"]:
        x = (self.norm(x) * self.weight).sum(dim=2) + self.bias
        return x


class FoldedPatchConvNet(Folded):
    """Stem, blocks, one look of the class tokens at their output; the class tokens' logits."""

    def __init__(self, model: patchconvnet.PatchConvNet) -> None:
        super().__init__(model)
        blocks: list[Any] = list(model.blocks)
        stem: list[Any] = list(model.patch_embed.proj)
        self.stem = nn.Sequential(
            *(layer for i in (0, 2, 4) for layer in (fold.convolution(stem[i][0]), nn.GELU())),
            fold.convolution(stem[6][0], center=True),
        )
        self.blocks = nn.ModuleList(Block(block) for block in blocks)
        last = cast(patchconvnet.Aggregation, model.blocks_token_only[0])
        self.classes = fold.constant(model.cls_token, model.cls_token)
        self.pooling = Pooling(last, model.cls_token)
        self.norm = plain_norm(last.norm2)
        self.mlp = mlp([(last.norm2, last.mlp, last.gamma_2)])
        several = isinstance(model.head, patchconvnet.ClassifierPerToken)
        self.head = (OneOutputEach if several else classifier)(model.norm, model.head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        maps = self.stem(x)
        grid = maps.shape[2], maps.shape[3]
        tokens = to_tokens(maps)
        for block in self.blocks:
            tokens = block(tokens, grid)
        classes = self.classes + self.pooling(tokens)
        x = self.head(classes + self.mlp(self.norm(classes)))
        return x
