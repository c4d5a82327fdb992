"""What was said of parts of a picture or of a view: of overlapping parts joined (objects are merged, maps averaged), of
a padded view without the padding.

A part is told by the geometry of its view, whose ``source`` is the whole picture and whose ``crop`` is the part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from anyres.config import UserError
from anyres.data.fit import unpadded
from anyres.evaluation.detections import Detections
from anyres.flow import Geometry, Size

OVERLAP = 0.25
"""Of a part's side, how much the next one shows again, at least; objects larger than that may come out in pieces."""
SAME = 0.5  # of two boxes, from which on they mean one object
MOST_BYTES = 2**32  # of averaged maps


def parts_of(size: Size, side: int, overlap: float = OVERLAP) -> list[tuple[int, int, int, int]]:
    """Top, left, height, width of the parts of a picture, all ``side`` pixels high and wide, or as the picture is where
    that is less; they cover it, and neighbors share ``overlap`` of their side or more. Row by row."""
    rows, columns = (_starts(length, side, overlap) for length in size)
    height, width = (min(length, side) for length in size)
    return [(top, left, height, width) for top in rows for left in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    step = max(1, int(side * (1 - overlap)))
    count = -(-(length - side) // step) + 1
    return [round((length - side) * i / (count - 1)) for i in range(count)]


def merged(parts: Iterable[tuple[Detections, Geometry]]) -> Detections:
    """Objects found in parts of one picture, all in pixels of the picture, each object once; best first.

    Of boxes of one class that overlap by more than half (torchvision's batched_nms), the best stays. A box that ends
    where its part does, within the picture, comes after all others, and goes where half of it lies in one that stays:
    a neighbor has seen the object whole.
    """
    from torchvision.ops import batched_nms

    given = [(found, _is_cut(found.boxes, geometry)) for found, geometry in parts]
    every = _together([found for found, _ in given])
    if not len(every):
        return every
    cut = np.concatenate([each for _, each in given])
    rank = torch.from_numpy(every.scores.astype(np.float64) - cut)
    boxes, classes = torch.from_numpy(every.boxes).double(), torch.from_numpy(every.classes)
    kept: list[int] = batched_nms(boxes, rank, classes, SAME).tolist()
    stay: list[int] = []
    for i in kept:
        same = [j for j in stay if every.classes[j] == every.classes[i]]
        if not (cut[i] and same and _share_within(every.boxes[i], every.boxes[same]) > SAME):
            stay.append(i)
    best = sorted(stay, key=lambda i: -float(every.scores[i]))
    return every.part(np.array(best, np.int64))


def averaged(parts: Iterable[tuple[Tensor, Geometry]]) -> Float32[Tensor, "k h w"]:
    """Logits (k, rows, columns) of parts of one picture -> of the picture, each resized to its part (bilinear) and
    averaged where several show a pixel. Raises UserError for a picture that has no room in memory so."""
    total: Tensor | None = None
    times = torch.zeros(0)
    for logits, geometry in parts:
        source = geometry.source
        if total is None:
            if 4 * len(logits) * source.height * source.width > MOST_BYTES:
                raise UserError(
                    f"logits of {len(logits)} classes for {source} px take more than {MOST_BYTES // 2**30} GiB: "
                    "give a smaller picture"
                )
            total, times = torch.zeros(len(logits), *source), torch.zeros(tuple(source))
        top, left, height, width = (round(x) for x in geometry.crop)
        values = logits[None].float().cpu()
        if tuple(values.shape[2:]) != (height, width):
            values = F.interpolate(values, size=[height, width], mode="bilinear", align_corners=False)
        bottom, right = min(top + height, source.height), min(left + width, source.width)
        total[:, top:bottom, left:right] += values[0, :, : bottom - top, : right - left]
        times[top:bottom, left:right] += 1
    assert total is not None, "a picture has one part at least"
    return total / times


def shown_part(output: Any, geometry: Geometry) -> tuple[Any, Geometry]:
    """What was said of a view (logits (k, rows, columns), or objects by ``boxes``, ``scores``, ``labels`` and perhaps
    ``masks``) and where it comes from -> the same of the part that shows the picture, where the view is padded."""
    part = unpadded(geometry)
    height, width = part.size
    if part.size == geometry.size:
        return output, geometry
    if isinstance(output, Mapping):
        most = output["boxes"].new_tensor([width, height, width, height])
        found = {**output, "boxes": torch.minimum(output["boxes"].clamp(min=0), most)}
        there = (found["boxes"][:, 2:] > found["boxes"][:, :2]).all(1)
        found = {name: value[there] for name, value in found.items()}
        return found | ({"masks": found["masks"][..., :height, :width]} if "masks" in found else {}), part
    if tuple(output.shape[-2:]) != tuple(geometry.size):
        output = F.interpolate(output[None], size=list(geometry.size), mode="bilinear", align_corners=False)[0]
    return output[..., :height, :width], part


def _is_cut(boxes: Float32[np.ndarray, "n 4"], geometry: Geometry) -> Bool[np.ndarray, " n"]:
    """Which boxes end, to a pixel of the view, at an edge of their part that is no edge of the picture."""
    top, left, height, width = geometry.crop
    source = geometry.source
    y, x = height / geometry.size.height, width / geometry.size.width
    inner = (
        (left > 0, boxes[:, 0] < left + x),
        (top > 0, boxes[:, 1] < top + y),
        (left + width < source.width, boxes[:, 2] > left + width - x),
        (top + height < source.height, boxes[:, 3] > top + height - y),
    )
    made = np.zeros(len(boxes), bool)
    for within, near in inner:
        made |= within & near
    return made


def _share_within(box: Float32[np.ndarray, " 4"], others: Float32[np.ndarray, "m 4"]) -> float:
    """How much of a box lies in that of the others which has most of it."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return float((high - low).clip(0).prod(1).max() / max(float((box[2:] - box[:2]).prod()), 1e-9))


def _together(found: list[Detections]) -> Detections:
    """One after another; with masks where all have them."""
    none: Float[np.ndarray, "0 4"] = np.zeros((0, 4), np.float32)
    masks = [each.masks for each in found if each.masks is not None]
    return Detections(
        np.concatenate([none, *(each.boxes for each in found)]),
        np.concatenate([none[:, 0], *(each.scores for each in found)]),
        np.concatenate([none[:, 0].astype(np.int64), *(each.classes for each in found)]),
        tuple(mask for some in masks for mask in some) if found and len(masks) == len(found) else None,
    )
