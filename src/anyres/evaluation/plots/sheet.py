"""Pictures beside one another, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

GAP = 6  # pixels between panels


def rgb(picture: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "3 h w"]:
    """The first three channels, or the first one thrice."""
    return picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)


def image_of(picture: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """The same as Pillow's image."""
    return Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()))  # (h, w, 3)


def png_of(image: Image.Image) -> bytes:
    """The content of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def sheet(rows: Sequence[Sequence[Image.Image]], side: int) -> bytes:
    """A PNG of the panels, which are ``side`` pixels or less on each side: equally many in every row, two rows beside
    each other where there are several."""
    across = 2 if len(rows) > 1 else 1
    lines = [[panel for row in rows[i : i + across] for panel in row] for i in range(0, len(rows), across)]
    heights = [max(panel.height for panel in line) for line in lines]
    width = len(lines[0]) * (side + GAP) + GAP
    made = Image.new("RGB", (width, sum(heights) + GAP * (len(heights) + 1)), (128, 128, 128))
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        for place, panel in enumerate(line):
            made.paste(panel, (GAP + place * (side + GAP) + (side - panel.width) // 2, top))
        top += height + GAP
    return png_of(made)
