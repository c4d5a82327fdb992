"""Maps over the picture they are of: heat, and the most looked-at part of it."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from anyres.evaluation.plots.sheet import image_of, rgb

SIDE = 336  # pixels of a drawing's longer side, at least
HEAT = "inferno"
LEAST, MOST = 0.15, 0.75
"""How much of the heat covers the picture, where a map is 0 and where it is highest."""
BRIGHTEST = 0.995
"""Of the pixels so many are no brighter than the brightest color: single pixels would darken all others."""
SHADE = 0.22
"""Brightness of what lies outside a mask."""


def over_pixels(
    maps: Float[Tensor, "g rows columns"] | Bool[Tensor, "g rows columns"], stride: int, size: tuple[int, int]
) -> Tensor:
    """Each position over its ``stride`` x ``stride`` pixels: (g, height, width), cut to the picture's ``size``.

    Pixels at the right and at the bottom that belong to no position, as some models of other libraries leave them out,
    are 0.
    """
    wide = maps.repeat_interleave(stride, dim=-2).repeat_interleave(stride, dim=-1)[..., : size[0], : size[1]]
    return F.pad(wide, (0, size[1] - wide.shape[-1], 0, size[0] - wide.shape[-2]))


def enlarged(picture: UInt8[Tensor, "c h w"]) -> Image.Image:
    """In color, by a whole factor so large that it can be looked at."""
    image = image_of(rgb(picture))
    factor = math.ceil(SIDE / max(image.size))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)


def heat(picture: UInt8[Tensor, "c h w"], at: Float[Tensor, "h w"]) -> Image.Image:
    """A map of the picture's pixels over it in gray, from 0 (dark) to what one pixel in 200 exceeds (bright)."""
    gray = np.asarray(enlarged(picture).convert("L").convert("RGB"), dtype=np.float32)
    factor = gray.shape[0] // at.shape[0]
    most = at.flatten().kthvalue(math.ceil(BRIGHTEST * at.numel())).values
    most = (most if most > 0 else at.max()).clamp_min(torch.finfo(at.dtype).tiny)
    shown = (at / most).clamp(max=1).repeat_interleave(factor, 0)
    values = shown.repeat_interleave(factor, 1).cpu().numpy()  # (h, w) -> the drawing's
    share = (LEAST + (MOST - LEAST) * values)[:, :, None]
    colors = np.asarray(colormaps[HEAT](values))[:, :, :3] * 255
    return Image.fromarray(((1 - share) * gray + share * colors).round().clip(0, 255).astype(np.uint8))


def lit(picture: UInt8[Tensor, "c h w"], mask: Bool[Tensor, "h w"]) -> Image.Image:
    """The picture, dark outside the mask."""
    colors = np.asarray(enlarged(picture), dtype=np.float32)
    factor = colors.shape[0] // mask.shape[0]
    inside = mask.repeat_interleave(factor, 0).repeat_interleave(factor, 1).cpu().numpy()
    return Image.fromarray((colors * np.where(inside, 1, SHADE)[:, :, None]).round().astype(np.uint8))


def data_url(drawing: Image.Image) -> str:
    """A drawing as an address that carries it along: JPEG, as a photograph is under it."""
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG", quality=86, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
