"""The deploy form of ResT (v1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import Folded, attend, mean_classifier, to_maps, to_tokens
from anyres.deploy.fuse.shrunk import Packed, PixelAttention, Shrunk, blocks_of
from anyres.models import rest
from anyres.ops import fold
from anyres.ops.mixed_heads import normed_heads
from anyres.ops.patch import Grid


class Attention(nn.Module):
    """EMSA: softmax attention, or with several heads InstanceNorm(softmax(mix(Q Kᵀ))) V.

    The bias of the mixing is the same for all keys, so the softmax does not see it.
    """

    def __init__(self, own: rest.Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.heads = own.heads
        self.project = Packed(own, norm) if own.reduction == 1 else Shrunk(own)
        if own.heads > 1:
            weight = own.transform_conv.weight
            self.mixing = fold.constant(weight.flatten(1), weight)  # (g, g, 1, 1) -> (g, g)
            self.mix: Callable[..., Tensor] = normed_heads
        self.proj = fold.before_scale(own.proj, None)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        query, key, value = (self.split(part) for part in self.project(x, grid)[:3])
        x = self.proj(attend(query, key, value) if self.heads == 1 else self.mix(query, key, value, self.mixing, None))
        return x

    def split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b g n d"]:
        """Channels into heads."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b, n, c) -> (b, n, g, d) -> (b, g, n, d)


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
