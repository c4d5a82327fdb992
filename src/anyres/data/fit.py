"""Whole pictures as views, for tasks that answer with places: nothing is cut off, and every place leads back.

Evaluation of whole-image classes crops; a detector that never sees an edge would be scored for what it was not shown.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anyres.config import UserError
from anyres.data.augment import resize
from anyres.data.geometry import View, inverted, matrix
from anyres.flow import Geometry, Size


def keep_size(picture: Size, side: int, *, longest: int | None = None, multiple: int = 1) -> Size:
    """The view of a picture whose short side becomes ``side`` pixels, or whose long side ``longest`` if that is less.

    Each side is rounded up to a ``multiple``. Raises UserError for numbers that are none.
    """
    if side < 1 or multiple < 1 or (longest is not None and longest < 1):
        raise UserError(f"side {side}, longest {longest} and multiple {multiple} must be 1 or more")
    scale = side / min(picture)
    if longest is not None:
        scale = min(scale, longest / max(picture))
    height, width = (max(1, round(length * scale)) for length in picture)
    return Size(-(-height // multiple) * multiple, -(-width // multiple) * multiple)


def fit_view(view: View, size: Size, interpolation: str = "bilinear") -> View:
    """The whole view, as large as fits into ``size`` with its shape kept, in the upper left; black beyond.

    Antialiased. ``fit_geometry`` says where the pixels come from.
    """
    shown = _fitted(view.geometry.size, size)
    pixels = torch.zeros((len(view.pixels), *size), dtype=torch.uint8)
    pixels[:, : shown.height, : shown.width] = resize(view.pixels, shown, interpolation)
    return View(pixels, fit_geometry(view.geometry, size))


def fit_geometry(geometry: Geometry, size: Size) -> Geometry:
    """Where the pixels of ``fit_view`` come from; ``geometry``: the decoded picture's own.

    Its crop reaches beyond the picture where the view is black, so that boxes and masks follow, and a class map is
    ignored there.
    """
    shown = _fitted(geometry.size, size)
    top, left, height, width = geometry.crop
    crop = (top, left, height * size.height / shown.height, width * size.width / shown.width)
    return Geometry(geometry.source, crop, size)


def _fitted(picture: Size, size: Size) -> Size:
    """The largest height and width within ``size`` that have the picture's shape, to a pixel."""
    scale = min(size.height / picture.height, size.width / picture.width)
    return Size(*(max(1, min(most, round(length * scale))) for length, most in zip(picture, size, strict=True)))


def shown_size(geometry: Geometry) -> Size:
    """Height and width of the part of a fitted view that shows the picture."""
    top, left, height, width = geometry.crop
    rows = (geometry.source.height - top) * geometry.size.height / height
    columns = (geometry.source.width - left) * geometry.size.width / width
    return Size(min(geometry.size.height, round(rows)), min(geometry.size.width, round(columns)))


def unpadded(geometry: Geometry) -> Geometry:
    """The same of the part of a fitted view that shows the picture, in the upper left; of another view, of all."""
    shown = shown_size(geometry)
    top, left, height, width = geometry.crop
    rows, columns = height * shown.height / geometry.size.height, width * shown.width / geometry.size.width
    return Geometry(geometry.source, (top, left, rows, columns), shown, geometry.flip, geometry.affine)


def boxes_back(boxes: Float[Tensor, "n 4"], geometry: Geometry) -> Float[Tensor, "n 4"]:
    """Boxes x1 y1 x2 y2 in pixels of a view without distortion -> of the picture, cut to it."""
    (a, _, c), (_, e, f) = inverted(matrix(geometry))
    scale = torch.tensor([a, e, a, e], dtype=boxes.dtype, device=boxes.device)
    shift = torch.tensor([c, f, c, f], dtype=boxes.dtype, device=boxes.device)
    made = boxes * scale + shift
    if geometry.flip:
        made = made[:, [2, 1, 0, 3]]
    height, width = geometry.source
    return torch.minimum(made.clamp(min=0), made.new_tensor([width, height, width, height]))
