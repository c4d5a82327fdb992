"""What a training view's colors may go through: grayscale, solarized, blurred, 3-Augment.

Each takes and returns uint8 (c, h, w) and draws from the global generators: call them within ``augment.seeded``.
Grayscale and blur are Pillow's, bit for bit, as in the published pipelines of DeiT III and DINO.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from torch import Tensor

T = TypeVar("T")
Step = Callable[[Tensor], Tensor]
_LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, in parts of 65,536
_RADIUS = (0.1, 2.0)  # of the Gaussian blur, in pixels
_SOLARIZE = 128  # values from here on are inverted


def sometimes(probability: float, step: Callable[[T], T]) -> Callable[[T], T]:
    """``step`` with that probability; always, and without a draw, for 1."""
    if probability >= 1:
        return step
    return lambda given: step(given) if float(torch.rand(())) < probability else given


def grayscale(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """Luma (ITU-R 601-2) of red, green and blue in all three channels; a single channel as it is."""
    if len(image) == 1:
        return image
    weights = torch.tensor(_LUMA, dtype=torch.int32).view(3, 1, 1)
    luma = ((image.int() * weights).sum(0, keepdim=True, dtype=torch.int32) + 0x8000) >> 16
    return luma.to(torch.uint8).expand_as(image)


def solarize(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """Values of 128 and more inverted."""
    return torch.where(image >= _SOLARIZE, 255 - image, image)


def blur(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """Gaussian blur of a radius drawn uniformly from 0.1 to 2 pixels."""
    radius = float(torch.empty(()).uniform_(*_RADIUS))
    blurred = ImageFilter.GaussianBlur(radius)
    if len(image) == 3:
        return _from_pillow(_to_pillow(image).filter(blurred))
    return torch.stack([_band(Image.fromarray(band.contiguous().numpy()).filter(blurred)) for band in image])


def three_augment(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """3-Augment (DeiT III): exactly one of grayscale, solarized and blurred, each as likely."""
    chosen: UInt8[Tensor, "c h w"] = (grayscale, solarize, blur)[int(torch.randint(3, ()))](image)
    return chosen


def _band(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))  # (h, w)


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)


def _from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
