"""What is found on a picture, and what is there: boxes, classes, scores, masks, in pixels of the upright picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from torch import Tensor

from anyres.config import need
from anyres.data.annotations.shapes import runs
from anyres.data.fit import boxes_back
from anyres.data.geometry import matrix
from anyres.flow import Geometry, Objects, Polygons, Rle, Shape, Size

MASK_AT = 0.5
"""A pixel is of an object where the mask's probability is at least this."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The n objects found on one picture, best first.

    ``boxes``: x1 y1 x2 y2 in pixels of the picture. ``scores``: in [0, 1]. ``classes``: indices of the classes, from 0.
    ``masks``: one for each, of the picture's size; None where the model answers none.
    """

    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, " n"]
    classes: Int64[np.ndarray, " n"]
    masks: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def part(self, chosen: Shaped[np.ndarray, " m"]) -> Detections:
        """Those at the places ``chosen``, or where ``chosen`` is true, in that order."""
        places = np.arange(len(self))[chosen]
        masks = None if self.masks is None else tuple(self.masks[i] for i in places.tolist())
        return Detections(self.boxes[places], self.scores[places], self.classes[places], masks)

    def above(self, score: float) -> Detections:
        """Those with this score or a better one."""
        return self.part(self.scores >= score)

    def coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Entries of COCO's file of results: image_id, category_id, bbox as x y width height, score, and segmentation
        where there are masks. ``category_ids``: by class; None: 1 for the first class, and so on, as COCO counts."""
        entries = []
        for i, ((x1, y1, x2, y2), score, c) in enumerate(
            zip(self.boxes.tolist(), self.scores.tolist(), self.classes.tolist(), strict=True)
        ):
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": category_ids[c] if category_ids else c + 1,
                "bbox": [round(x, 3) for x in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 5),
            }
            if self.masks is not None:
                entry["segmentation"] = compressed(self.masks[i])
            entries.append(entry)
        return entries


def coco_document(answered: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """What was told of images -> a COCO dataset: ``images``, ``categories`` counted from 1, ``annotations`` with score.

    Each of ``answered`` has ``image``, its file, and ``width``, ``height`` and ``objects`` (``name``, ``score``,
    ``box`` x1 y1 x2 y2, perhaps ``mask`` in COCO's form), or an ``error``: such an image is kept, without annotations.
    """
    number = {name: i for i, name in enumerate(classes, 1)}
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(answered, 1):
        for found in image.get("objects", ()):
            x1, y1, x2, y2 = found["box"]
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": number[found["name"]],
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "area": round((x2 - x1) * (y2 - y1), 2),
                "iscrowd": 0,
                "score": found["score"],
            }
            if "mask" in found:
                entry |= {"segmentation": found["mask"], "area": runs(found["mask"]).counts[1::2].sum().item()}
            annotations.append(entry)
    return {
        "images": [{"id": i, "file_name": one["image"], **one} for i, one in enumerate(answered, 1)],
        "categories": [{"id": i, "name": name} for name, i in number.items()],
        "annotations": annotations,
    }


@dataclass(frozen=True, eq=False)
class Truth:
    """The n objects that one picture has.

    ``boxes``: x1 y1 x2 y2 in pixels of the picture. ``classes``: indices of the classes. ``crowd``: true where a box
    stands for several objects, so that any number of detections in it are neither right nor wrong. ``areas``: in
    pixels, of the outline where there is one, else of the box. ``masks``: None where none are scored; that of an object
    without an outline is its box. ``of_size``: the picture's.
    """

    boxes: Float32[np.ndarray, "n 4"]
    classes: Int64[np.ndarray, " n"]
    crowd: Bool[np.ndarray, " n"]
    areas: Float64[np.ndarray, " n"]
    masks: tuple[Rle, ...] | None
    of_size: Size

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of(cls, objects: Objects, masks: bool = False) -> Truth:
        """What ``objects`` say, and their ``masks``, rasterized as COCO does."""
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).astype(np.float64)
        areas, drawn = sides.prod(1), []
        for i, shape in enumerate(objects.shapes):
            outline = shape if shape is not None or not masks else _around(objects.boxes[i])
            if outline is None:
                continue
            mask = coco_mask(outline, objects.of_size)
            if shape is not None:
                areas[i] = mask.counts[1::2].sum()
            drawn.append(mask)
        found = tuple(drawn) if masks else None
        return cls(objects.boxes, objects.classes, objects.crowd, areas, found, objects.of_size)


def detections_of(output: Mapping[str, Tensor], geometry: Geometry) -> Detections:
    """A detector's output for one view -> what it found on the picture, best first.

    ``output``: ``boxes`` (n, 4) x1 y1 x2 y2 in pixels of the view, ``scores`` (n,), ``labels`` (n,) from 0 and, where
    the model has them, ``masks`` (n, 1, H, W), probabilities at the view's size. ``geometry``: where the view's pixels
    come from, without distortion. What lies outside of the picture, as in padding, is left out.
    """
    boxes = boxes_back(output["boxes"].detach().float(), geometry)
    sides = boxes[:, 2:] - boxes[:, :2]
    order = output["scores"].argsort(descending=True, stable=True)
    order = order[(sides > 0).all(1)[order]]
    masks = None
    if "masks" in output:
        masks = tuple(
            mask_on_picture(output["masks"][i, 0].detach().float(), boxes[i], geometry) for i in order.tolist()
        )
    scores, labels = output["scores"].detach().float(), output["labels"].long()
    found, sure, classes = (x[order].cpu().numpy() for x in (boxes, scores, labels))
    return Detections(found, sure, classes, masks)


def mask_on_picture(mask: Float[Tensor, "H W"], box: Float[Tensor, " 4"], geometry: Geometry) -> Rle:
    """A mask's probabilities at the view's size -> the mask at the picture's size, bilinear, cut to the picture.

    ``box``: around the object, in pixels of the picture; only there, and a pixel of the view beyond, is anything
    computed.
    """
    size = geometry.source
    (a, b, c), (d, e, f) = matrix(geometry)
    assert b == d == 0, "a view that was rotated or sheared is not scored"
    x1, y1, x2, y2 = box.tolist()
    left, right = max(0, int(x1 - 1 / abs(a))), min(size.width, int(x2 + 1 / abs(a)) + 1)
    top, bottom = max(0, int(y1 - 1 / e)), min(size.height, int(y2 + 1 / e) + 1)
    height, width = mask.shape
    x = (a * (torch.arange(left, right, device=mask.device) + 0.5) + c) * (2 / width) - 1
    y = (e * (torch.arange(top, bottom, device=mask.device) + 0.5) + f) * (2 / height) - 1
    grid = torch.stack([x[None].expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)  # (rows, columns, 2)
    sampled = F.grid_sample(mask[None, None], grid[None].to(mask.dtype), padding_mode="border", align_corners=False)
    return placed((sampled[0, 0] >= MASK_AT).cpu().numpy(), top, left, size)


def placed(part: Bool[np.ndarray, "rows columns"], top: int, left: int, size: Size) -> Rle:
    """The mask of ``size`` that has ``part`` at (``top``, ``left``) and nothing else, without its other pixels."""
    framed = np.zeros((part.shape[0] + 2, part.shape[1]), np.int8)
    framed[1:-1] = part
    change = np.diff(framed, axis=0).T  # (columns, rows + 1): 1 where a run begins, -1 after its end
    column, row = np.nonzero(change == 1)
    starts = (left + column) * size.height + top + row
    column, row = np.nonzero(change == -1)
    ends = (left + column) * size.height + top + row
    apart = starts[1:] != ends[:-1]  # else a run goes on in the next column
    starts, ends = starts[np.append(True, apart)[: len(starts)]], ends[np.append(apart, True)[: len(ends)]]
    edges = np.stack([starts, ends], 1).reshape(-1)
    counts = np.diff(edges, prepend=0, append=size.height * size.width).astype(np.int64)
    return Rle(counts if counts[-1] else counts[:-1], size)


def coco_mask(shape: Polygons | Rle, size: Size) -> Rle:
    """The pixels of an outline as COCO's own code fills them."""
    if isinstance(shape, Rle):
        return shape
    coco = need("faster_coco_eval.core.mask", extra="tasks", purpose="reading and writing masks")
    made = coco.merge(coco.frPyObjects([part.reshape(-1).astype(float).tolist() for part in shape.parts], *size))
    return runs({"size": list(made["size"]), "counts": made["counts"].decode()})


def compressed(mask: Rle) -> dict[str, Any]:
    """COCO's form: ``size`` height and width, ``counts`` as text."""
    coco = need("faster_coco_eval.core.mask", extra="tasks", purpose="reading and writing masks")
    made = coco.frPyObjects({"size": list(mask.of_size), "counts": mask.counts.tolist()}, *mask.of_size)
    return {"size": list(mask.of_size), "counts": made["counts"].decode()}


def _around(box: Float32[np.ndarray, " 4"]) -> Shape:
    """A box as an outline."""
    x1, y1, x2, y2 = box.tolist()
    return Polygons((np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32),))
