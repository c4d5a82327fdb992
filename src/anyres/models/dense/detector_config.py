"""What a detector is made of, as values; ``anyres.models.dense.detector`` makes it. Imports no torch."""

from __future__ import annotations

from typing import Literal

from anyres.config import UserError, config

Kind = Literal["mask_rcnn", "faster_rcnn", "retinanet", "vitdet"]
WITH_MASKS: tuple[Kind, ...] = ("mask_rcnn", "vitdet")
"""Those that have a mask head."""


@config
class DetectorConfig:
    """What stands on the pyramid. Defaults are the papers'; ``CONFIGS`` has those of each kind."""

    kind: Kind
    """``vitdet`` is Mask R-CNN with ViTDet's layers: no sum of levels, convolutions with norm in all heads."""
    num_classes: int = 80
    """Classes, without background."""
    width: int = 256
    """Channels of the levels and of the heads' convolutions; 64 does for a small set."""
    hidden: int = 1024
    """Width of the box head's linear layers."""
    norm: Literal["none", "group", "layer"] = "none"
    """Norm after the convolutions of levels and heads; a model without pretrained weights needs one, ``group``."""
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side in pixels of each of the five levels' anchors."""
    rpn_convs: int = 1
    """Convolutions of the proposals' head."""
    box_convs: int = 0
    """Convolutions of the box head, before its linear layers."""
    box_linears: int = 2
    """Linear layers of the box head."""
    mask_convs: int = 4
    """Convolutions of the mask head."""
    proposals: int = 1000
    """Boxes that go on to the box head, after suppression; in training too, where torchvision has 2000. Of each level
    as many are suppressed among themselves before, in training twice as many."""
    taught: int = 512
    """Proposals of an image that the box and mask heads learn from; 64 make the steps of a small model faster."""
    detections: int = 100
    """Most boxes of an image."""
    min_score: float = 0.05
    """Boxes below are not given."""
    max_overlap: float = 0.5
    """Boxes of one class that overlap more (IoU) with a better one are not given."""

    def __post_init__(self) -> None:
        counts = (self.num_classes, self.width, self.hidden, self.rpn_convs, self.box_linears, self.mask_convs)
        if min(*counts, self.proposals, self.taught, self.detections) < 1 or self.box_convs < 0:
            raise UserError(f"a detector's classes, widths, layers and boxes must be 1 or more: {self}")
        if len(self.anchors) != 5 or min(self.anchors) < 1:
            raise UserError(f"anchors are five sides in pixels, one a level, not {self.anchors}")
        if not (0 <= self.min_score < 1 and 0 < self.max_overlap <= 1):
            raise UserError("min_score must lie in [0, 1), max_overlap in (0, 1]")


CONFIGS: dict[str, DetectorConfig] = {
    "mask_rcnn": DetectorConfig(kind="mask_rcnn"),
    "faster_rcnn": DetectorConfig(kind="faster_rcnn"),
    "retinanet": DetectorConfig(kind="retinanet"),
    "vitdet": DetectorConfig(kind="vitdet", norm="layer", rpn_convs=2, box_convs=4, box_linears=1),
}
