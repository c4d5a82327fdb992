"""``create_task_model``: a detector, a segmenter or a model of clips by name.

Its callers decide when torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyres.config import UserError, nearest, override
from anyres.models.dense.detector_config import CONFIGS
from anyres.models.registry import model_names, official_name, variant

if TYPE_CHECKING:
    from anyres.models.dense.detector import Detector
    from anyres.models.dense.segmenter import Segmenter
    from anyres.models.video import VideoModel

HEADS = {
    "detect": ("mask_rcnn", "faster_rcnn", "retinanet", "vitdet"),
    "segment": ("upernet",),
    "video": ("timesformer", "average"),
}
"""Task -> what stands on the backbone, or, of clips, what is put into it."""
CLIP_CLASSES = 400
"""Kinetics-400's."""
SEGMENTED_AT = 512
"""Pixels that a position table is made for, as ADE20K's crops have; any other size is resampled."""


def create_task_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: str | Path | bool = False,
    backbone: Mapping[str, Any] | None = None,
    **options: Any,
) -> Detector | Segmenter | VideoModel:
    """A model for more than classes of images by name, such as ``"detect/mask_rcnn_restv2_tiny"``, in training mode.

    The name is ``detect/`` with mask_rcnn, faster_rcnn, retinanet or vitdet, or ``segment/`` with upernet, then ``_``
    and any backbone, also ``timm:NAME``; or ``video/`` with timesformer or average (without time) and a plain ViT, such
    as resformer_base. ``num_classes``: COCO's 80, ADE20K's 150 (background not counted) or Kinetics' 400 if None.
    ``pretrained``: weights of the backbone alone, as ``create_bottom_up`` takes them; a whole model's file goes into
    ``load_weights``. ``backbone``: the family's options, such as ``{"drop_path": 0.1}``. ``options`` are fields of
    ``DetectorConfig``, ``SegmenterConfig`` or ``VideoConfig``, such as ``width=64`` and ``norm="group"``, which suit a
    small set without pretrained weights, or ``frames=16``.
    Raises UserError for an unknown name or option, and for weights that do not fit.
    """
    task, head, model = parse(name)
    if task == "video":
        return _video(head, model, num_classes, pretrained, backbone or {}, options)
    from anyres.models.dense import detector, segmenter  # with torch
    from anyres.models.pyramids.bottom_up import create_bottom_up

    values = options if num_classes is None else {**options, "num_classes": num_classes}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    chosen = dict(backbone or {})
    made: Detector | Segmenter
    if task == "detect":
        config = override(CONFIGS[head], values, name)
        stages = (2, 3, 4) if head == "retinanet" else (1, 2, 3, 4)
        trunk = create_bottom_up(model, style="detection", stages=stages, pretrained=pretrained, **chosen)
        made = detector.Detector(trunk, config)
    else:
        about = variant(model)
        if not about.foreign and "img_size" in {field.name for field in fields(about.config)}:
            chosen = {"img_size": SEGMENTED_AT, **chosen}
        trunk = create_bottom_up(model, style="segmentation", pretrained=pretrained, **chosen)
        made = segmenter.Segmenter(trunk, override(segmenter.CONFIGS[head], values, name))
    made.pretrained_cfg["architecture"] = f"{task}/{head}_{model}"
    return made


def _video(
    kind: str,
    model: str,
    num_classes: int | None,
    pretrained: str | Path | bool,
    backbone: Mapping[str, Any],
    options: Mapping[str, Any],
) -> VideoModel:
    from anyres.models.create import create_model
    from anyres.models.index import first_weights
    from anyres.models.video import VideoConfig, VideoModel  # with torch
    from anyres.models.weights import load_weights

    image = create_model(model, CLIP_CLASSES if num_classes is None else num_classes, **backbone)
    made = VideoModel(image, override(VideoConfig(), {"kind": kind, **options}, f"video/{kind}_{model}"))
    if pretrained:
        source = first_weights(model) if pretrained is True else pretrained
        load_weights(made, source, replace_head="if_needed")
    return made


def parse(name: str) -> tuple[str, str, str]:
    """``"detect/mask_rcnn_restv2_tiny"`` -> task, head and the backbone's official name. Raises UserError."""
    task, slash, rest = name.partition("/")
    if not slash or task not in HEADS:
        raise UserError(f"{name!r} is no task model: its name begins with detect/ or segment/ or video/")
    head = next((head for head in HEADS[task] if rest.startswith(f"{head}_")), None)
    if head is None:
        known = [f"{task}/{head}_restv2_tiny" for head in HEADS[task]]
        raise UserError(f"{name!r} names none of {', '.join(HEADS[task])}{nearest(name, known)}")
    model = rest.removeprefix(f"{head}_")
    try:
        return task, head, official_name(model)
    except UserError:
        known = [f"{task}/{head}_{each}" for each in model_names()]
        raise UserError(f"there is no model {name!r}{nearest(name, known)}") from None
