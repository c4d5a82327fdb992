"""One training view of one image: crop -> flip -> colours, as a function of its seed alone.

The operations are torchvision's and timm's; what is ours is that they draw from generators set by ``seeded``.
"""

from __future__ import annotations

import hashlib
import random
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from anyres.config import config
from anyres.data.color import Step, blur, grey, solarise, sometimes, three_augment
from anyres.data.randaugment import rand_augment
from anyres.flow import Size

_PADDING = 4  # pixels around an image before a padded or simple crop
_LONGEST = 8  # these crops first cut a window out of an image that is more than so many times as elongated as the view
_RAND_AUGMENT = re.compile(r"rand(-(mstd|mmax|inc|m|n|p)\d+(\.\d+)?)*")


@config
class AugmentConfig:
    """How a training view is cut and coloured.

    ``crop``: ``resized`` cuts a box of ``crop_scale`` of the area and ``crop_ratio`` (width/height) and resizes it;
    ``padded`` pads 4 black pixels around and cuts at random (for pictures that have the view's size, as CIFAR's);
    ``simple`` (DeiT III's SRC) resizes so that the view is just covered, pads 4 mirrored pixels and cuts at random.
    Colours, in the order of doing: ``three_augment``: exactly one of grey, solarised and blurred (DeiT III), with
    neither rand_augment nor erasing nor the three by themselves. ``rand_augment``: timm's string, as
    ``rand-m9-mstd0.5-inc1``, or colour jitter with the strengths ``brightness``, ``contrast``, ``saturation``, ``hue``
    and the probability ``jitter``. ``grayscale``, ``blur`` (Gaussian, radius 0.1 to 2 pixels), ``solarize`` (values
    from 128 on inverted): probabilities. ``erasing``: probability of a box of noise, drawn after normalising
    (mix.erase).
    """

    crop: Literal["resized", "padded", "simple"] = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 1.0
    three_augment: bool = False
    rand_augment: str | None = None
    grayscale: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    erasing: float = 0.0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        if self.jitters and self.rand_augment:
            raise ValueError("colour jitter and rand_augment exclude each other: set one of them to 0 or null")
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
        if not (0 <= self.flip <= 1 and 0 <= self.erasing <= 1):
            raise ValueError(f"flip {self.flip} and erasing {self.erasing} are probabilities: 0 to 1")
        for name in ("jitter", "grayscale", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is a probability: 0 to 1")
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError("strengths of colour jitter are 0 or more, and hue is at most 0.5")

    @property
    def jitters(self) -> bool:
        """Whether any strength of colour jitter is set."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))


@contextmanager
def seeded(seed: int, epoch: int, index: int, view: int, stage: int = 0) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's CPU generators depend on these numbers alone; after it they are as before.

    ``stage`` keeps draws for different purposes apart. All numbers are non-negative.
    """
    with as_before():
        reseed(seed, epoch, index, view, stage)
        yield


@contextmanager
def as_before() -> Iterator[None]:
    """After it Python's, NumPy's and torch's CPU generators are as before: once around several ``reseed``."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.random.set_rng_state(cpu)


def reseed(seed: int, epoch: int, index: int, view: int, stage: int = 0) -> None:
    """From here on the generators depend on these numbers alone: within ``as_before``."""
    number = key(seed, epoch, index, view, stage)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(number)


def key(*numbers: int) -> int:
    """A 63-bit number from whole numbers: the same on every machine, unlike for other numbers."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def augment(image: UInt8[Tensor, "3 h w"], size: Size, how: AugmentConfig) -> UInt8[Tensor, "3 H W"]:
    """One view at ``size``, drawn from the global generators: call it within ``seeded``.

    Fastest where the memory of ``image`` holds h, w, 3, as a decoder's does: torch resizes that in half of the time.
    """
    view: UInt8[Tensor, "3 H W"] = view_maker(size, how)(image)
    return view


@lru_cache(maxsize=64)
def view_maker(size: Size, how: AugmentConfig) -> Step:
    """``augment`` for many images: ask for it before ``reseed``, for what is imported here may draw too."""
    order = [step for _, step in steps(size, how)]

    def make(image: Tensor) -> Tensor:
        for step in order:
            image = step(image)
        return image

    return make


def one_pixel(image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 1 1"]:
    """The image's mean colour: torch 2.15's kernel that resizes bytes fails on this one size."""
    return image.float().mean((1, 2), keepdim=True).round().to(torch.uint8)


def _window(image: UInt8[Tensor, "3 h w"], size: Size) -> UInt8[Tensor, "3 h2 w2"]:
    """The image itself, or of a very long one a piece drawn along it, so that covering ``size`` fits into memory."""
    h, w = image.shape[-2:]
    kept_h = min(h, max(1, _LONGEST * w * size.height // size.width))
    kept_w = min(w, max(1, _LONGEST * h * size.width // size.height))
    if (kept_h, kept_w) == (h, w):
        return image
    top, left = int(torch.randint(h - kept_h + 1, ())), int(torch.randint(w - kept_w + 1, ()))
    return image[:, top : top + kept_h, left : left + kept_w]


def _cover(image: UInt8[Tensor, "3 h w"], size: Size) -> UInt8[Tensor, "3 h2 w2"]:
    """The image resized so that it just covers ``size``; itself when one side fits already."""
    h, w = image.shape[-2:]
    scale = max(size.height / h, size.width / w)
    if scale == 1:
        return image
    new = [max(size.height, round(h * scale)), max(size.width, round(w * scale))]
    if new == [1, 1]:
        return one_pixel(image)
    covered: Tensor = F.resize(image, new, InterpolationMode.BICUBIC, antialias=True)
    return covered


def _just_cover(image: UInt8[Tensor, "3 h w"], size: Size) -> UInt8[Tensor, "3 h2 w2"]:
    """The image resized, down or up, so that it just covers ``size``: for a square, torchvision's Resize(side)."""
    h, w = image.shape[-2:]
    if size.height * w >= size.width * h:  # as wide as the view or wider: the height decides
        new = [size.height, max(size.width, int(size.height * w / h))]
    else:
        new = [max(size.height, int(size.width * h / w)), size.width]
    if new == [1, 1]:
        return one_pixel(image)
    covered: Tensor = F.resize(image, new, InterpolationMode.BICUBIC, antialias=True)
    return covered


def steps(size: Size, how: AugmentConfig) -> tuple[tuple[str, Step], ...]:
    """What is done to make a view, in order, each under its stage: crop, flip, colours, layout."""
    return (
        *(("crop", step) for step in _crop(how, size)),
        *((("flip", sometimes(how.flip, lambda image: image.flip(-1))),) if how.flip else ()),
        *(("colours", step) for step in _colours(how, size)),
        ("layout", Tensor.contiguous),
    )


def _crop(how: AugmentConfig, size: Size) -> Iterator[Step]:
    if how.crop == "padded":
        yield lambda image: _cover(_window(image, size), size)
        yield v2.RandomCrop(size, padding=_PADDING)
    elif how.crop == "simple":
        around = min(_PADDING, *(side - 1 for side in size))  # no more can be mirrored
        yield lambda image: _just_cover(_window(image, size), size)
        yield v2.RandomCrop(size, padding=around, padding_mode="reflect")
    else:
        yield _resized_crop(how, Size(2, 2) if size == (1, 1) else size)
        if size == (1, 1):
            yield one_pixel


def _resized_crop(how: AugmentConfig, size: Size) -> Step:
    """torchvision's RandomResizedCrop. The box is copied before it is resized: so it lies in the processor's cache."""
    mode = InterpolationMode(how.interpolation)
    draw = v2.RandomResizedCrop(size, how.crop_scale, how.crop_ratio)

    def cut(image: Tensor) -> Tensor:
        box = draw.make_params([image])
        piece = image[:, box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]]
        piece = piece[None].contiguous(memory_format=torch.channels_last)[0]  # (3, h, w) as h, w, 3 in memory
        resized: Tensor = F.resize(piece, list(size), mode, antialias=True)
        return resized

    return cut


def _colours(how: AugmentConfig, size: Size) -> Iterator[Step]:
    if how.three_augment:
        yield three_augment
    if how.rand_augment:
        yield rand_augment(how.rand_augment, size, how.interpolation)
    elif how.jitters and how.jitter:
        yield Tensor.contiguous  # these are faster by channel
        yield sometimes(how.jitter, v2.ColorJitter(how.brightness, how.contrast, how.saturation, how.hue))
    for probability, step in ((how.grayscale, grey), (how.blur, blur), (how.solarize, solarise)):
        if probability:
            yield sometimes(probability, step)
