"""Segmenters: UPerNet on the pyramid of any backbone, a class for each pixel.

Xiao, Liu, Zhou, Jiang, Sun: "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, arXiv:1807.10221. The
decoder is segmentation-models-pytorch's; the classifier and the auxiliary head are mmsegmentation's, as ResT's and
ResFormer's segmentation have them. Parameters with ADE20K's 150 classes, published (M) and here:

    ======================================  =========  ===========
    model                                   published  here
    ======================================  =========  ===========
    segment/upernet_restv2_tiny             62.1       62,088,284
    segment/upernet_restv2_small            72.9       72,859,484
    segment/upernet_restv2_base             87.6       87,618,716
    segment/upernet_resformer_small         51.7       51,712,556
    segment/upernet_resformer_base          119.8      119,804,204
    segment/upernet_deit_small              52.1       52,094,636
    segment/upernet_deit_base               120.6      120,576,044
    ======================================  =========  ===========

Any height and width: logits are enlarged by the stride and cut to the image, so a pixel's class comes from its own
place also where grids round up; at multiples of 32 px that is what mmsegmentation does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from anyres.config import UserError, config, need
from anyres.models.contract import Network
from anyres.models.dense.layers import groups_under, own_names
from anyres.models.dense.norms import group_norm
from anyres.models.dense.sizes import batch_norm_in_words, check_side
from anyres.models.pyramids.bottom_up import BottomUp
from anyres.ops.patch import crop

IGNORED = 255
"""The class of pixels that count for nothing."""


@config
class SegmenterConfig:
    """What stands on the pyramid. Defaults are the papers'."""

    num_classes: int = 150
    """Classes."""
    width: int = 512
    """Channels of the decoder; 64 does for a small set."""
    auxiliary_width: int = 256
    """Channels of the auxiliary head, which reads the third map and helps in training alone; 0: none."""
    auxiliary_weight: float = 0.4
    """Weight of its loss."""
    dropout: float = 0.1
    """Of channels, before both classifiers."""
    norm: Literal["batch", "group"] = "batch"
    """Norm after the convolutions; ``group`` for batches of one image or two."""

    def __post_init__(self) -> None:
        if min(self.num_classes, self.width) < 1 or self.auxiliary_width < 0:
            raise UserError(f"a segmenter's classes and widths must be 1 or more: {self}")
        if not 0 <= self.dropout < 1 or self.auxiliary_weight < 0:
            raise UserError("dropout must lie in [0, 1), auxiliary_weight be 0 or more")


CONFIGS: dict[str, SegmenterConfig] = {"upernet": SegmenterConfig()}


class UPerHead(nn.Module):
    """Four maps -> logits at the stride of the first."""

    def __init__(self, bottom_up: BottomUp, config: SegmenterConfig) -> None:
        super().__init__()
        need("segmentation_models_pytorch", extra="tasks", purpose="UPerNet")
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        channels = list(bottom_up.channels.values())
        self.decoder = UPerNetDecoder([0, 0, *channels], decoder_channels=config.width)
        if bottom_up.normed:
            self.decoder.feature_norms = nn.ModuleList()  # else every map would have two
        self.dropout = nn.Dropout2d(config.dropout)
        self.conv_seg = nn.Conv2d(config.width, config.num_classes, kernel_size=1)

    def forward(self, maps: dict[str, Tensor]) -> Float[Tensor, "b n rows columns"]:
        x: Tensor = self.decoder([None, None, *maps.values()])
        x = self.conv_seg(self.dropout(x))
        return x


class FCNHead(nn.Sequential):
    """One map -> logits at its stride: a 3x3 convolution with norm and ReLU, and the classifier."""

    def __init__(self, channels: int, config: SegmenterConfig) -> None:
        width = config.auxiliary_width
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout2d(config.dropout)
        self.conv_seg = nn.Conv2d(width, config.num_classes, kernel_size=1)


class Segmenter(Network):
    """Images -> logits of every pixel; with maps of classes -> losses. See this module's docstring."""

    def __init__(self, bottom_up: BottomUp, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.backbone = bottom_up
        self.decode_head = UPerHead(bottom_up, config)
        channels = bottom_up.channels["stage3"]
        self.auxiliary_head = FCNHead(channels, config) if config.auxiliary_width else None
        if config.norm == "group":
            for head in (self.decode_head, self.auxiliary_head):
                _to_group_norm(head)
        names = ("decode_head.conv_seg", "auxiliary_head.conv_seg")
        self.pretrained_cfg = {**bottom_up.pretrained_cfg, "classifier": names, "num_classes": config.num_classes}
        self.coarsest = max(bottom_up.strides.values())
        """Pixels per position of the backbone's coarsest map: the smallest side of an image."""

    @property
    def bottom_up(self) -> BottomUp:
        """The backbone."""
        return self.backbone

    def forward(
        self, images: Float[Tensor, "b k h w"], maps: Integer[Tensor, "b h w"] | None = None
    ) -> Float[Tensor, "b n h w"] | dict[str, Tensor]:
        """Normalised images -> logits of the same height and width.

        With ``maps``, the class of every pixel from 0 (255: counts for nothing), returns the losses instead, scalars:
        ``decode`` and ``auxiliary``, which has its weight in it. Raises UserError for a side below the backbone's
        coarsest stride, and in training for batch norm with one value per channel.
        """
        if maps is None:
            return self._answers(images, auxiliary=False)["decode"]
        return self.losses(self.answers(images), maps)

    def answers(self, images: Float[Tensor, "b k h w"]) -> dict[str, Tensor]:
        """Normalised images -> logits (b, n, h, w) of every head, by its name: ``decode``, ``auxiliary``."""
        return self._answers(images, auxiliary=self.auxiliary_head is not None)

    def losses(self, answers: Mapping[str, Tensor], maps: Integer[Tensor, "b h w"]) -> dict[str, Tensor]:
        """What ``answers`` cost, each head's in its weight: scalars whose sum is minimized."""
        weight = {"decode": 1.0, "auxiliary": self.config.auxiliary_weight}
        return {name: weight[name] * pixel_loss(logits, maps) for name, logits in answers.items()}

    def _answers(self, images: Float[Tensor, "b k h w"], *, auxiliary: bool) -> dict[str, Tensor]:
        size = (images.shape[-2], images.shape[-1])
        check_side(self.called, size, self.coarsest)
        with batch_norm_in_words(self.called):
            pyramid = self.backbone(images)
            strides = self.backbone.strides
            made = {"decode": enlarge(self.decode_head(pyramid), strides["stage1"], size)}
            if auxiliary and self.auxiliary_head is not None:
                made["auxiliary"] = enlarge(self.auxiliary_head(pyramid["stage3"]), strides["stage3"], size)
        return made

    def get_classifier(self) -> nn.Module:
        """The head's last layer, a 1x1 convolution."""
        return self.decode_head.conv_seg

    def check_sizes(self, sizes: Iterable[tuple[int, int]], *, training: bool = False) -> None:
        """Raises UserError for the first (height, width) below the coarsest stride, or that the backbone refuses."""
        sizes = list(sizes)
        for size in sizes:
            check_side(self.called, size, self.coarsest)
        self.backbone.check_sizes(sizes, training=training)

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Own names, from whose front a reader of files takes ``backbone.``."""
        return own_names(state, self.state_dict())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's layers; all that stands on it is in the last."""
        return groups_under(self.backbone.group_matcher(coarse), "backbone.")

    def no_weight_decay(self) -> set[str]:
        """The backbone's own."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)


def enlarge(
    logits: Float[Tensor, "b n rows columns"], stride: float, size: tuple[int, int]
) -> Float[Tensor, "b n h w"]:
    """Logits of positions -> of pixels: bilinear by the stride, then cut to ``size``; float32 from half precision."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    sides = [max(int(count * stride), side) for count, side in zip(logits.shape[-2:], size, strict=True)]
    return crop(F.interpolate(logits, size=sides, mode="bilinear", align_corners=False), size)


def pixel_loss(logits: Float[Tensor, "b n h w"], maps: Integer[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the pixels that count; 0 where none does."""
    maps = maps.long()
    counted = (maps != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(logits, maps, ignore_index=IGNORED, reduction="sum") / counted


def _to_group_norm(module: nn.Module | None) -> None:
    """Replaces every batch norm below; the decoder has one that its own option does not reach."""
    for name, child in [*module.named_children()] if module is not None else []:
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        else:
            _to_group_norm(child)
