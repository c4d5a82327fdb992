"""Maps of classes as pictures: an overlay on the picture, an index PNG, and truth beside answer."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from anyres.flow import IGNORED

BACKGROUND = "background"
"""A class of this name is left as the picture shows it."""
GOLDEN = 0.618033988749895  # of the circle of hues, so that no two classes are near each other
SIDE, GAP = 220, 6  # pixels of a panel's longer side, and between panels


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
        _rgb(picture).contiguous(), masks, alpha=0.5, colors=[colors[i] for i in shown]
    )
    return torch.where(found == IGNORED, torch.zeros_like(drawn), drawn)


def overlay_png(picture: UInt8[Tensor, "c h w"], found: UInt8[Tensor, "h w"], classes: Sequence[str]) -> bytes:
    """``overlay`` as the content of a PNG."""
    return _png(_image(overlay(picture, found, classes)))


def index_png(found: UInt8[Tensor, "h w"], classes: Sequence[str]) -> bytes:
    """The map as the content of a PNG whose pixels are the indices of the classes, shown in their colors."""
    image = Image.fromarray(found.cpu().numpy())
    image.putpalette([value for color in palette(len(classes)) for value in color])
    return _png(image)


def beside(rows: Sequence[tuple[Tensor, Tensor, Tensor]], classes: Sequence[str]) -> bytes:
    """A sheet: for each (picture, truth, answer) the picture, with the truth over it, with the answer over it."""
    panels = [
        [
            _panel(_image(_rgb(picture))),
            *(_panel(_image(overlay(picture, found, classes))) for found in (truth, answer)),
        ]
        for picture, truth, answer in rows
    ]
    across = 2 if len(panels) > 1 else 1  # pictures side by side
    width = across * 3 * SIDE + (across * 3 + 1) * GAP
    heights = [
        max(panel.height for row in panels[i : i + across] for panel in row) for i in range(0, len(panels), across)
    ]
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(heights) + 1)), (128, 128, 128))
    top = GAP
    for i, height in enumerate(heights):
        row = [panel for each in panels[i * across : (i + 1) * across] for panel in each]
        for place, panel in enumerate(row):
            sheet.paste(panel, (GAP + place * (SIDE + GAP) + (SIDE - panel.width) // 2, top))
        top += height + GAP
    return _png(sheet)


def _rgb(picture: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "3 h w"]:
    return picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)


def _image(picture: UInt8[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()))  # (h, w, 3)


def _panel(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    return image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
