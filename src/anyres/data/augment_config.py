"""How a training view is cut and colored, as values; ``anyres.data.augment`` does it. Imports no torch."""

from __future__ import annotations

import re
from typing import Literal

from anyres.config import config

_RAND_AUGMENT = re.compile(r"rand(-(mstd|mmax|inc|m|n|p)\d+(\.\d+)?)*")


@config
class AugmentConfig:
    """How a training view is cut and colored.

    Colors are done in this order: three_augment, rand_augment or color jitter, grayscale, blur, solarize.
    """

    # ``resized`` cuts a box of crop_scale and crop_ratio and resizes it; ``padded`` pads 4 black pixels around and cuts
    # at random (for pictures that have the view's size, as CIFAR's); ``simple`` (DeiT III's SRC) resizes so that the
    # view is just covered, pads 4 mirrored pixels and cuts at random
    crop: Literal["resized", "padded", "simple"] = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area, least and most
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, least and most
    flip: float = 0.5  # probability of mirroring left to right
    flip_vertical: float = 0.0  # probability of mirroring top to bottom, as for pictures from the air
    brightness: float = 0.0  # strength of color jitter: factors from 1 - x to 1 + x
    contrast: float = 0.0  # strength of color jitter: factors from 1 - x to 1 + x
    saturation: float = 0.0  # strength of color jitter: factors from 1 - x to 1 + x
    hue: float = 0.0  # strength of color jitter: shifts from -x to x of the color wheel, at most 0.5
    jitter: float = 1.0  # probability of color jitter
    three_augment: bool = False  # DeiT III: exactly one of grayscale, solarize and blur, before color jitter
    rand_augment: str | None = None  # timm's string, as rand-m9-mstd0.5-inc1, instead of color jitter
    grayscale: float = 0.0  # probability of luma in all three channels
    blur: float = 0.0  # probability of Gaussian blur of a radius of 0.1 to 2 pixels
    solarize: float = 0.0  # probability of inverting values from 128 on
    erasing: float = 0.0  # probability of a box of noise, drawn after normalizing (erasing.erase)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # of resized crops and RandAugment's geometry

    def __post_init__(self) -> None:
        if self.jitters and self.rand_augment:
            raise ValueError("color jitter and rand_augment exclude each other: set one of them to 0 or null")
        if self.three_augment and self.rand_augment:
            raise ValueError("three_augment and rand_augment exclude each other: set one of them to false or null")
        if self.three_augment and self.erasing:
            raise ValueError(f"three_augment goes without erasing, which is {self.erasing}: set it to 0")
        if self.three_augment and any((self.grayscale, self.blur, self.solarize)):
            raise ValueError("three_augment does grayscale, blur or solarize itself: set these probabilities to 0")
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise ValueError(f"rand_augment {self.rand_augment!r} is not of the form 'rand-m9-mstd0.5-inc1'")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} must be two shares of the area, 0 < low <= high <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio} must be two ratios, 0 < low <= high")
        for name in ("flip", "flip_vertical", "jitter", "grayscale", "blur", "solarize", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is a probability: 0 to 1")
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError("strengths of color jitter are 0 or more, and hue is at most 0.5")

    @property
    def jitters(self) -> bool:
        """Whether any strength of color jitter is set."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))
