"""Maps of classes as pictures: an overlay on the picture, an index PNG, and truth beside answer."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from anyres.evaluation.plots.sheet import image_of, png_of, rgb, sheet
from anyres.flow import IGNORED

BACKGROUND = "background"
"""A class of this name is left as the picture shows it."""
GOLDEN = 0.618033988749895  # of the circle of hues, so that no two classes are near each other
SIDE = 220  # pixels of a panel's longer side


def palette(count: int) -> list[tuple[int, int, int]]:
    """Red, green, blue of so many classes, the same for every model."""
    colors = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb((0.58 + GOLDEN * i) % 1, 0.85 - 0.25 * (i // 3 % 2), 0.95)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def overlay(
    picture: UInt8[Tensor, "c h w"], found: UInt8[Tensor, "h w"], classes: Sequence[str]
) -> UInt8[Tensor, "3 h w"]:
    """The picture with each class in its color over it, half transparent; black where the map is ignored."""
    from torchvision.utils import draw_segmentation_masks

    shown = [i for i, name in enumerate(classes) if name != BACKGROUND]
    colors = palette(len(classes))
    masks = torch.stack([found == i for i in shown]) if shown else torch.zeros(0, *found.shape, dtype=torch.bool)
    drawn: Tensor = draw_segmentation_masks(
        rgb(picture).contiguous(), masks, alpha=0.5, colors=[colors[i] for i in shown]
    )
    return torch.where(found == IGNORED, torch.zeros_like(drawn), drawn)


def overlay_png(picture: UInt8[Tensor, "c h w"], found: UInt8[Tensor, "h w"], classes: Sequence[str]) -> bytes:
    """``overlay`` as the content of a PNG."""
    return png_of(image_of(overlay(picture, found, classes)))


def index_png(found: UInt8[Tensor, "h w"], classes: Sequence[str]) -> bytes:
    """The map as the content of a PNG whose pixels are the indices of the classes, shown in their colors."""
    image = Image.fromarray(found.cpu().numpy())
    image.putpalette([value for color in palette(len(classes)) for value in color])
    return png_of(image)


def beside(rows: Sequence[tuple[Tensor, Tensor, Tensor]], classes: Sequence[str]) -> bytes:
    """A sheet: for each (picture, truth, answer) the picture, with the truth over it, with the answer over it."""
    panels = [
        [
            _panel(image_of(rgb(picture))),
            *(_panel(image_of(overlay(picture, found, classes))) for found in (truth, answer)),
        ]
        for picture, truth, answer in rows
    ]
    return sheet(panels, SIDE)


def _panel(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    return image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))
