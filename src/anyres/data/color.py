"""What a training view's colours may go through: grey, solarised, blurred, 3-Augment.

Each takes and returns uint8 (3, h, w) and draws from the global generators: call them within ``augment.seeded``. Grey
and blur are Pillow's, bit for bit, as in the published pipelines of DeiT III and DINO.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from torch import Tensor

Step = Callable[[Tensor], Tensor]
_LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue, in parts of 65,536
_RADIUS = (0.1, 2.0)  # of the Gaussian blur, in pixels
_SOLARIZE = 128  # values from here on are inverted


def sometimes(probability: float, step: Step) -> Step:
    """``step`` with that probability; always, and without a draw, for 1."""
    if probability >= 1:
        return step
    return lambda image: step(image) if float(torch.rand(())) < probability else image


def grey(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """Luma (ITU-R 601-2) in all three channels."""
    weights = torch.tensor(_LUMA, dtype=torch.int32).view(3, 1, 1)
    luma = ((image.int() * weights).sum(0, keepdim=True, dtype=torch.int32) + 0x8000) >> 16
    return luma.to(torch.uint8).expand_as(image)


def solarise(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """Values of 128 and more inverted."""
    return torch.where(image >= _SOLARIZE, 255 - image, image)


def blur(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """Gaussian blur of a radius drawn uniformly from 0.1 to 2 pixels."""
    radius = float(torch.empty(()).uniform_(*_RADIUS))
    return _from_pillow(_to_pillow(image).filter(ImageFilter.GaussianBlur(radius)))


def three_augment(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """3-Augment (DeiT III): exactly one of grey, solarised and blurred, each as likely."""
    chosen: UInt8[Tensor, "3 h w"] = (grey, solarise, blur)[int(torch.randint(3, ()))](image)
    return chosen


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())  # (3, H, W) -> (H, W, 3)


def _from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
