"""Where a view's pixels come from: composed while the view is made, and applied to boxes, points and masks.

Positions are continuous: a pixel in row r and column c covers [r, r + 1) x [c, c + 1), and its center is half a pixel
further. ``flow.Geometry`` says what each number means.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from anyres.flow import Geometry, Size

if TYPE_CHECKING:
    from torchvision import tv_tensors

Affine = tuple[tuple[float, float, float], tuple[float, float, float]]
"""(x, y) -> (a x + b y + c, d x + e y + f), as ((a, b, c), (d, e, f))."""
UNMOVED: Affine = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


class View(NamedTuple):
    """A picture in the making: uint8 pixels (c, H, W), and where they come from."""

    pixels: Tensor
    geometry: Geometry


def whole(pixels: Tensor) -> View:
    """An image (c, h, w) as a view of itself."""
    size = Size(*pixels.shape[-2:])
    return View(pixels, Geometry(size, (0.0, 0.0, float(size.height), float(size.width)), size))


def cut(geometry: Geometry, top: int, left: int, size: Size) -> Geometry:
    """After a box of ``size`` was cut at (``top``, ``left``), in pixels of the view, before any flip."""
    box_top, box_left, height, width = geometry.crop
    y, x = height / geometry.size.height, width / geometry.size.width  # pixels of the image for one of the view
    crop = (box_top + top * y, box_left + left * x, size.height * y, size.width * x)
    return Geometry(geometry.source, crop, size)


def resized(geometry: Geometry, size: Size) -> Geometry:
    """After the view was resized to ``size``."""
    if geometry.affine is None:
        return Geometry(geometry.source, geometry.crop, size, geometry.flip)
    y, x = size.height / geometry.size.height, size.width / geometry.size.width
    (a, b, c), (d, e, f) = geometry.affine
    affine = ((a, b * x / y, c * x), (d * y / x, e, f * y))
    return Geometry(geometry.source, geometry.crop, size, geometry.flip, affine)


def flipped(geometry: Geometry) -> Geometry:
    """After the view was mirrored left to right, before any affine distortion."""
    return replace(geometry, flip=not geometry.flip)


def distorted(geometry: Geometry, affine: Affine | None) -> Geometry:
    """After the view's pixels were moved by ``affine``; None: they were not."""
    return geometry if affine is None else replace(geometry, affine=composed(affine, geometry.affine or UNMOVED))


def composed(second: Affine, first: Affine) -> Affine:
    """``first``, then ``second``."""
    (a, b, c), (d, e, f) = second
    (g, h, i), (j, k, m) = first
    return (a * g + b * j, a * h + b * k, a * i + b * m + c), (d * g + e * j, d * h + e * k, d * i + e * m + f)


def inverted(affine: Affine) -> Affine:
    """What undoes ``affine``."""
    (a, b, c), (d, e, f) = affine
    det = a * e - b * d
    a, b, d, e = e / det, -b / det, -d / det, a / det
    return (a, b, -(a * c + b * f)), (d, e, -(d * c + e * f))


def rotation(degrees: float, size: Size) -> Affine:
    """Pixels turned counter-clockwise around the center, as Pillow's ``rotate`` does."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = size.width / 2, size.height / 2
    return (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y)


def matrix(geometry: Geometry) -> Affine:
    """From (x, y) in pixels of the image to (x, y) in pixels of the view."""
    top, left, height, width = geometry.crop
    x, y = geometry.size.width / width, geometry.size.height / height
    made: Affine = ((x, 0.0, -left * x), (0.0, y, -top * y))
    if geometry.flip:
        made = composed(((-1.0, 0.0, float(geometry.size.width)), (0.0, 1.0, 0.0)), made)
    return made if geometry.affine is None else composed(geometry.affine, made)


def map_points(points: Float[Tensor, "*n 2"], geometry: Geometry) -> Float[Tensor, "*n 2"]:
    """Points (x, y) in pixels of the image -> in pixels of the view; they may lie outside of it."""
    made = torch.tensor(matrix(geometry), dtype=points.dtype, device=points.device)
    return points @ made[:, :2].T + made[:, 2]


def map_boxes(boxes: tv_tensors.BoundingBoxes, geometry: Geometry, clamp: bool = True) -> tv_tensors.BoundingBoxes:
    """Boxes (n, 4) of the image, in any axis-aligned format -> the smallest boxes around what they become in the view.

    ``clamp``: cut to the view; what lies outside then has no area. Boxes that are no floats become float32.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    corners = F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    values = corners.as_subclass(Tensor)
    values = values if values.is_floating_point() else values.float()
    x, y = values[:, [0, 2, 0, 2]], values[:, [1, 1, 3, 3]]
    mapped = map_points(torch.stack([x, y], -1), geometry)  # (n, 4 corners, 2)
    around = torch.cat([mapped.amin(1), mapped.amax(1)], 1)  # (n, 4)
    made = tv_tensors.BoundingBoxes(around, format="XYXY", canvas_size=tuple(geometry.size))
    made = F.clamp_bounding_boxes(made) if clamp else made
    back: tv_tensors.BoundingBoxes = F.convert_bounding_box_format(made, new_format=boxes.format)
    return back


def map_mask(mask: Shaped[Tensor, "*n h w"], geometry: Geometry, fill: int = 0) -> Shaped[Tensor, "*n H W"]:
    """Masks of the image (..., h, w), of any dtype -> of the view: each pixel has the value at its center.

    ``fill`` stands where the view shows nothing of the image (padding, what a distortion leaves bare).
    """
    h, w = mask.shape[-2:]
    (a, b, c), (d, e, f) = inverted(matrix(geometry))
    x = torch.arange(geometry.size.width, dtype=torch.float64, device=mask.device) + 0.5
    y = torch.arange(geometry.size.height, dtype=torch.float64, device=mask.device)[:, None] + 0.5
    column, row = _pixel(a * x + b * y + c), _pixel(d * x + e * y + f)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    made = mask[..., row.clamp(0, h - 1), column.clamp(0, w - 1)]
    return torch.where(inside, made, torch.as_tensor(fill, dtype=mask.dtype, device=mask.device))


def _pixel(position: Float64[Tensor, "H W"]) -> Tensor:
    """The pixel that a position lies in."""
    return (position + 1e-9).floor().long()
