"""Detectors: torchvision's Mask R-CNN, Faster R-CNN and RetinaNet on the pyramid of any backbone.

He, Gkioxari, Dollár, Girshick: "Mask R-CNN", ICCV 2017, arXiv:1703.06870; Ren, He, Girshick, Sun: "Faster R-CNN",
NeurIPS 2015, arXiv:1506.01497; Lin, Goyal, Girshick, He, Dollár: "Focal Loss for Dense Object Detection", ICCV 2017,
arXiv:1708.02002.

Parameters with COCO's 80 classes, as ResT's and ResFormer's papers give them (M):

    ======================================  =========  ==========
    model                                   published  here
    ======================================  =========  ==========
    detect/mask_rcnn_rest_small             31.2       33,322,985
    detect/mask_rcnn_rest_base              49.8       49,837,657
    detect/mask_rcnn_restv2_tiny            49.9       49,945,381
    detect/mask_rcnn_restv2_small           60.7       60,716,581
    detect/mask_rcnn_restv2_base            75.5       75,475,813
    detect/retinanet_rest_small             23.4       23,401,064
    detect/retinanet_rest_base              40.5       40,497,304
    detect/vitdet_resformer_small           45.6       45,580,661
    detect/vitdet_resformer_base            115.3      115,345,397
    ======================================  =========  ==========

31.2 is a mistake in ResT's README: no setting of its code gives it, and an older README says 33.3. R-CNNs have 4,357
parameters more than detectron2's, as torchvision has boxes and a mask for the background too.

Deviations from detectron2, which the papers used: box losses of the R-CNNs are smooth L1 (beta 1/9), not L1; RoIAlign
samples two points a side and does not shift by half a pixel; anchors are rounded to whole pixels; RetinaNet's focal
loss is averaged by image; mask targets are pooled from bitmaps, not drawn from polygons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from anyres.config import UserError
from anyres.models.contract import Network
from anyres.models.dense.detector_config import WITH_MASKS, DetectorConfig
from anyres.models.dense.feature_pyramid import FeaturePyramid, FixedStrideAnchors, fixed_pooling
from anyres.models.dense.layers import groups_under, own_names
from anyres.models.dense.norms import new_norm
from anyres.models.dense.sizes import batch_norm_in_words, check_side
from anyres.models.external import share_members
from anyres.models.pyramids.bottom_up import BottomUp

RATIOS = (0.5, 1.0, 2.0)
"""Height by width of the anchors of each size."""
Target = dict[str, Tensor]
"""``boxes`` (n, 4) float32 x1 y1 x2 y2 in pixels, ``labels`` (n,) int64 from 0, and for masks ``masks`` (n, h, w)."""


class Detector(Network):
    """Images -> boxes, and for Mask R-CNN masks; in training -> losses. See this module's docstring.

    Labels count from 0 everywhere, without background.
    """

    torchvision: nn.Module
    """torchvision's model, whose members are this module's."""

    def __init__(self, bottom_up: BottomUp, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        single = config.kind == "retinanet"
        share_members(self, "torchvision", _retinanet(bottom_up, config) if single else _rcnn(bottom_up, config))
        heads = ("head.classification_head",) if single else _CLASSIFIERS
        self.pretrained_cfg = {**bottom_up.pretrained_cfg, "classifier": heads, "num_classes": config.num_classes}
        self.coarsest = max(bottom_up.strides.values())
        """Pixels per position of the backbone's coarsest map: the smallest side of an image."""

    @property
    def bottom_up(self) -> BottomUp:
        """The backbone."""
        found = self.get_submodule("backbone.bottom_up")
        assert isinstance(found, BottomUp)
        return found

    def forward(
        self,
        images: Sequence[Float[Tensor, "k _ _"]] | Float[Tensor, "b k h w"],
        targets: Sequence[Target] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Normalised images (k, h, w) of any sizes, or a batch of one size.

        In training, with a target for each image, returns named losses, scalars. In evaluation a dict for each image:
        ``boxes`` (n, 4) x1 y1 x2 y2 in pixels of that image, ``labels`` (n,) from 0, ``scores`` (n,) in [0, 1], best
        first, and with masks ``masks`` (n, 1, h, w) in [0, 1]. Images of several sizes are padded at the right and at
        the bottom to the largest, with zeros. An image without objects has boxes (0, 4). Raises UserError for a side
        below the backbone's coarsest stride, and in training without targets.
        """
        for image in images:
            check_side(self.called, (image.shape[-2], image.shape[-1]), self.coarsest)
        if self.training and targets is None:
            raise UserError("a detector in training needs targets: give them, or call eval() first")
        self.torchvision.training = self.training  # it is no child, which a mode would reach
        with batch_norm_in_words(self.called):
            found: dict[str, Tensor] | list[dict[str, Tensor]] = self.torchvision(list(images), targets)
        return found

    @property
    def has_masks(self) -> bool:
        """Whether it answers with masks, and learns from them."""
        return self.config.kind in WITH_MASKS

    def get_classifier(self) -> nn.Module:
        """The layer that scores the classes of boxes."""
        single = self.config.kind == "retinanet"
        return self.get_submodule(
            "head.classification_head.cls_logits" if single else "roi_heads.box_predictor.cls_score"
        )

    def check_sizes(self, sizes: Iterable[tuple[int, int]], *, training: bool = False) -> None:
        """Raises UserError for the first (height, width) below the coarsest stride, or that the backbone refuses."""
        sizes = list(sizes)
        for size in sizes:
            check_side(self.called, size, self.coarsest)
        self.bottom_up.check_sizes(sizes, training=training)

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Own names, from whose front a reader of files takes ``backbone.``."""
        return own_names(state, self.state_dict())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's layers; all that stands on it is in the last."""
        return groups_under(self.bottom_up.group_matcher(coarse), "backbone.bottom_up.")

    def no_weight_decay(self) -> set[str]:
        """The backbone's own."""
        return {f"backbone.bottom_up.{name}" for name in self.bottom_up.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass."""
        self.bottom_up.set_grad_checkpointing(enable)


_CLASSIFIERS = ("roi_heads.box_predictor", "roi_heads.mask_predictor.mask_fcn_logits")


class Unchanged(nn.Module):
    """In the place of torchvision's resize and normalisation: sizes and colours are not the model's to decide.

    ``first_label`` is what the heads call class 0: 1 where 0 is the background.
    """

    def __init__(self, first_label: int) -> None:
        super().__init__()
        self.first_label = first_label

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None
    ) -> tuple[ImageList, list[Target] | None]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        batch = images[0].new_zeros(len(sizes), images[0].shape[0], height, width)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[-2], : image.shape[-1]] = image
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + self.first_label} for target in targets]
        return ImageList(batch, sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], sizes: list[tuple[int, int]], originals: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Masks at the size of each image, labels from 0."""
        del originals  # the same
        for found, size in zip(result, sizes, strict=False):  # in training there is no result
            found["labels"] = found["labels"] - self.first_label
            if "masks" in found:
                found["masks"] = paste_masks_in_image(found["masks"], found["boxes"], size)
        return result


def _levels(bottom_up: BottomUp, more: int) -> list[float]:
    """Strides of all levels, with ``more`` after the backbone's own, each twice as coarse."""
    strides = list(bottom_up.strides.values())
    return strides + [strides[-1] * 2 ** (i + 1) for i in range(more)]


def _rcnn(bottom_up: BottomUp, config: DetectorConfig) -> nn.Module:
    """Faster R-CNN, or with masks Mask R-CNN."""
    width, columns, norm = config.width, config.num_classes + 1, new_norm(config.norm)
    names, strides = list(bottom_up.strides), list(bottom_up.strides.values())
    if config.kind == "vitdet" and bottom_up.layout.neck is None:
        raise UserError(f"vitdet is for plain ViTs, and {bottom_up.called} has stages: take mask_rcnn")
    backbone = FeaturePyramid(bottom_up, width, norm=norm, top=None, joined=config.kind != "vitdet")
    box_head: nn.Module
    if (config.box_convs, config.box_linears) == (0, 2):
        box_head = TwoMLPHead(width * 7 * 7, config.hidden)
    else:
        layers = [width] * config.box_convs, [config.hidden] * config.box_linears
        box_head = FastRCNNConvFCHead((width, 7, 7), *layers, norm)
    options: dict[str, Any] = {
        "rpn_anchor_generator": FixedStrideAnchors([(side,) for side in config.anchors], RATIOS, _levels(bottom_up, 1)),
        "rpn_head": RPNHead(width, len(RATIOS), config.rpn_convs),
        "rpn_pre_nms_top_n_train": 2 * config.proposals,
        "rpn_pre_nms_top_n_test": config.proposals,
        "rpn_post_nms_top_n_train": config.proposals,
        "rpn_post_nms_top_n_test": config.proposals,
        "box_batch_size_per_image": config.taught,
        "box_roi_pool": fixed_pooling(names, strides, 7),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(config.hidden, columns),
        "box_score_thresh": config.min_score,
        "box_nms_thresh": config.max_overlap,
        "box_detections_per_img": config.detections,
    }
    make = FasterRCNN
    if config.kind != "faster_rcnn":
        make = partial(
            MaskRCNN,
            mask_roi_pool=fixed_pooling(names, strides, 14),
            mask_head=MaskRCNNHeads(width, [width] * config.mask_convs, 1, norm),
            mask_predictor=MaskRCNNPredictor(width, width, columns),
        )
    model: nn.Module = make(backbone, **options)
    model.transform = Unchanged(first_label=1)
    return model


def _retinanet(bottom_up: BottomUp, config: DetectorConfig) -> nn.Module:
    """RetinaNet: two levels above the backbone's, made of its coarsest map, and three anchors of each size."""
    width, norm = config.width, new_norm(config.norm)
    top = LastLevelP6P7(list(bottom_up.channels.values())[-1], width)
    backbone = FeaturePyramid(bottom_up, width, norm=norm, top=top)
    sizes = [tuple(int(side * 2 ** (i / 3)) for i in range(3)) for side in config.anchors]
    anchors = FixedStrideAnchors(sizes, RATIOS, _levels(bottom_up, 5 - len(bottom_up.strides)))
    model: nn.Module = RetinaNet(
        backbone,
        config.num_classes,
        anchor_generator=anchors,
        head=RetinaNetHead(width, 3 * len(RATIOS), config.num_classes, norm),
        score_thresh=config.min_score,
        nms_thresh=config.max_overlap,
        detections_per_img=config.detections,
    )
    model.transform = Unchanged(first_label=0)
    return model
