"""The deploy form of ResTv2."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import Folded, attend, mean_classifier
from anyres.deploy.fuse.shrunk import Packed, PixelAttention, Shrunk, blocks_of
from anyres.models import restv2
from anyres.ops import fold
from anyres.ops.patch import Grid, crop, to_maps, to_tokens


class Attention(nn.Module):
    """EMSAv2: softmax attention plus the values upsampled and normalised."""

    def __init__(self, own: restv2.Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.heads = own.heads
        self.project = Packed(own, norm) if own.reduction == 1 else Shrunk(own)
        self.up = nn.Sequential(fold.convolution(cast(nn.Conv2d, own.up[0])))
        if own.reduction > 1:
            self.up.append(nn.PixelShuffle(own.reduction))
        self.up_norm = fold.layer_norm(own.up_norm)
        self.proj = fold.before_scale(own.proj, None)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        query, keys, values, small = self.project(x, grid)
        mixed = attend(self.split(query), self.split(keys), self.split(values))
        maps = self.up(to_maps(values, small))
        x = self.proj(mixed + self.up_norm(to_tokens(crop(maps, grid))))
        return x

    def split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b g n d"]:
        """Channels into heads."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b, n, c) -> (b, n, g, d) -> (b, g, n, d)


class Embed(nn.Module):
    """Convolutions, pixel attention and norm: map -> tokens and their grid."""

    def __init__(self, proj: nn.Module, own: restv2.Stem | restv2.PatchEmbed) -> None:
        super().__init__()
        self.proj = proj
        self.pos = PixelAttention(own.pos.pa_conv)
        self.norm = fold.layer_norm(own.norm)

    def forward(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        maps = self.pos(self.proj(x))
        return self.norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])


class FoldedResTv2(Folded):
    """Four stages of blocks, each after a convolution; the mean of the last tokens."""

    def __init__(self, model: restv2.ResTv2) -> None:
        super().__init__(model)
        stem: list[Any] = list(model.stem.proj)
        convolutions = (
            fold.convolution(stem[0], stem[1]),
            fold.convolution(stem[3], stem[4]),
            fold.convolution(stem[6]),
        )
        first = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        self.embeds = nn.ModuleList([Embed(first, model.stem)])
        for embed in (model.patch_2, model.patch_3, model.patch_4):
            self.embeds.append(Embed(fold.convolution(embed.proj), embed))
        stages = (model.stage1, model.stage2, model.stage3, model.stage4)
        self.stages = nn.ModuleList(blocks_of(stage, Attention) for stage in stages)
        self.head = mean_classifier(model.norm, model.head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        x = x.contiguous(memory_format=torch.channels_last)  # then tokens are maps, and nothing is copied between them
        for embed, stage in zip(self.embeds, self.stages, strict=True):
            tokens, grid = embed(x)
            for block in cast(nn.ModuleList, stage):
                tokens = block(tokens, grid)
            x = to_maps(tokens, grid)
        x = self.head(tokens)
        return x
