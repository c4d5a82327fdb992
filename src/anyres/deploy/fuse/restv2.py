"""The deploy form of ResTv2."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import Folded, mean_classifier, to_maps, to_tokens
from anyres.deploy.fuse.spatial_reduction import FusedQKV, PixelAttention, SpatialReduction, blocks_of
from anyres.deploy.fuse.tracing import is_tracing_for_cpu
from anyres.models import restv2
from anyres.ops import fold
from anyres.ops.attention import attend_plus
from anyres.ops.patch import Grid, crop


class Upsample(nn.Module):
    """A small map's tokens -> tokens of the grid: a 3x3 convolution gives r² of each, and they are laid out in place.

    The official form, a grouped convolution and a pixel shuffle, leaves channels first. For r of 2, and in a program
    for a CPU, the map is repeated r² times along its channels instead, so that the convolution is depthwise and its
    output moves in runs of r * c numbers (OpenVINO bf16: 0.4 of the time for r = 2, 0.9 for r = 8; eager PyTorch for
    r = 8: 1.5 to 2 times as long, so it keeps the official form there).
    """

    def __init__(self, own: nn.Conv2d, reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.grouped = fold.convolution(own)
        channels, copies = own.in_channels, reduction**2
        order = torch.arange(channels * copies).view(channels, copies).T.flatten()  # (c, r²) -> (r², c)
        self.repeated = fold.depthwise(own.weight[order], fold.bias_of(own)[order], own.weight)

    def forward(self, values: Float[Tensor, "b m c"], small: Grid, grid: Grid) -> Float[Tensor, "b n c"]:
        r = self.reduction
        if r > 2 and not is_tracing_for_cpu():
            return to_tokens(cut(F.pixel_shuffle(self.grouped(to_maps(values, small)), r), grid))
        repeated = values if r == 1 else values.repeat(1, 1, r * r)  # as tokens: along the axis that lies innermost
        x = self.repeated(to_maps(repeated, small)).permute(0, 2, 3, 1)  # (b, hs, ws, r * r * c)
        x = x.reshape(*x.shape[:3], r, r, -1).transpose(2, 3)  # (b, hs, ws, r, r, c) -> (b, hs, r, ws, r, c)
        x = x.reshape(x.shape[0], small[0] * r, small[1] * r, -1)
        return to_tokens(cut(x.permute(0, 3, 1, 2), grid))


def cut(maps: Float[Tensor, "b c hp wp"], grid: Grid) -> Float[Tensor, "b c h w"]:
    """``crop``, which copies in every exported program, only where the exported size is free."""
    fixed = all(isinstance(side, int) for side in grid)
    return maps[:, :, : grid[0], : grid[1]] if fixed else crop(maps, grid)


class Attention(nn.Module):
    """EMSAv2: softmax attention plus the values upsampled and normalised."""

    def __init__(self, own: restv2.Attention, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.heads = own.heads
        self.project = FusedQKV(own, norm) if own.reduction == 1 else SpatialReduction(own)
        self.up = Upsample(cast(nn.Conv2d, own.up[0]), own.reduction)
        self.up_norm = fold.layer_norm(own.up_norm)
        self.proj = fold.fold_output_scale(own.proj, None)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        query, keys, values, small = self.project(x, grid)
        added = self.up(values, small, grid)
        query, key, value = (self.split(part) for part in (query, keys, values))
        x = self.proj(attend_plus(query, key, value, added, self.up_norm, 1.0))
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
        first, second = fold.convolution(stem[0], stem[1]), fold.convolution(stem[3], stem[4])
        proj = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), fold.convolution(stem[6]))
        self.embeds = nn.ModuleList([Embed(proj, model.stem)])
        for embed in (model.patch_2, model.patch_3, model.patch_4):
            self.embeds.append(Embed(fold.convolution(embed.proj), embed))
        stages = (model.stage1, model.stage2, model.stage3, model.stage4)
        self.stages = nn.ModuleList(blocks_of(stage, Attention) for stage in stages)
        self.head = mean_classifier(model.norm, model.head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        for embed, stage in zip(self.embeds, self.stages, strict=True):
            tokens, grid = embed(x)
            for block in cast(nn.ModuleList, stage):
                tokens = block(tokens, grid)
            x = to_maps(tokens, grid)
        x = self.head(tokens)
        return x
