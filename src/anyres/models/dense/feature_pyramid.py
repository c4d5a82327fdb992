"""Between a pyramid and a detector's heads: maps of one width, a level or two more, anchors and pooling by strides.

torchvision derives strides from sizes (image // grid, and a power of two near grid / image), which is wrong where grids
round up: at 225 px the last column of stride 32 would have its anchors at 196 px, not at 224. Here strides are the
backbone's own, so no image has to be padded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from anyres.models.dense.norms import NormLayer
from anyres.models.pyramids.bottom_up import BottomUp


class FeaturePyramid(nn.Module):
    """Image -> maps of ``out_channels`` by name: those of ``bottom_up``, and what ``top`` adds.

    The backbone's names are ``bottom_up.*``, as detectron2 has them. With ``joined`` each map is the sum of its own and
    the coarser ones (Lin et al., CVPR 2017, arXiv:1612.03144); without, as ViTDet has it, each stands alone.
    """

    def __init__(
        self, bottom_up: BottomUp, width: int, *, norm: NormLayer, top: ExtraFPNBlock | None, joined: bool = True
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.out_channels = width
        channels = list(bottom_up.channels.values())
        top = top or LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(channels, width, top, norm) if joined else Laterals(channels, width, norm)

    def forward(self, x: Float[Tensor, "b k h w"]) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.fpn(OrderedDict(self.bottom_up(x)))
        return maps


class Laterals(nn.Module):
    """ViTDet's: a 1x1 and a 3x3 convolution for each map, each with a norm, and a fifth level by subsampling."""

    def __init__(self, channels: Sequence[int], width: int, norm: NormLayer) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(*_conv(count, width, 1, norm), *_conv(width, width, 3, norm)) for count in channels
        )

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name: level(x) for level, (name, x) in zip(self.levels, maps.items(), strict=True)}
        last = list(found.values())[-1]
        return {**found, "pool": last[:, :, ::2, ::2]}


def _conv(before: int, after: int, kernel: int, norm: NormLayer) -> list[nn.Module]:
    """A convolution with its norm, or with a bias where there is none."""
    layer = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=norm is None)
    return [layer, norm(after)] if norm else [layer]


class FixedStrideAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision's detectors take no other class
    """Anchors of each level at multiples of its stride, whatever the size of the image."""

    def __init__(self, sizes: Sequence[Sequence[int]], ratios: Sequence[float], strides: Sequence[float]) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image the boxes (n, 4) of all levels, x1 y1 x2 y2 in pixels."""
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        grids = [maps.shape[-2:] for maps in feature_maps]
        strides = [[torch.tensor(stride, device=like.device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


def fixed_pooling(names: Sequence[str], strides: Sequence[float], side: int) -> MultiScaleRoIAlign:
    """RoIAlign of ``side`` x ``side`` on the levels ``names``, with their strides: torchvision would take those of the
    first image it sees, rounded to a power of two, for good."""
    pool = MultiScaleRoIAlign(list(names), side, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(2, 1 + len(names))
    return pool
