"""One training view of one image: crop -> flip -> colors, as a function of its seed alone.

The operations are torchvision's and timm's; what is ours is that they draw from generators set by ``seeded``.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.augment_config import AugmentConfig
from anyres.data.color import Step, blur, grayscale, solarize, sometimes, three_augment
from anyres.data.geometry import Affine, View, cut, distorted, flipped, resized, whole
from anyres.data.randaugment import rand_augment
from anyres.flow import Size

if TYPE_CHECKING:
    from torchvision.transforms import v2

_PADDING = 4  # pixels around an image before a padded or simple crop
_LONGEST = 8  # these crops first cut a window out of an image that is more than so many times as elongated as the view


ViewStep = Callable[[View], View]
"""One step of making a view: its pixels, and with them where they come from."""


def check_channels(how: AugmentConfig, channels: int) -> None:
    """Raises UserError where an augmentation has no meaning for images of so many channels.

    For one channel all have: a grayscale image stays as it is where only hue or saturation would change. For 2, 4 and
    more, what knows red, green and blue has none; crops, flips, blur, solarizing and erasing have.
    """
    if channels in (1, 3):
        return
    asked = {
        "rand_augment": how.rand_augment,
        "three_augment": how.three_augment,
        "grayscale": how.grayscale,
        "brightness, contrast, saturation and hue": how.jitters and how.jitter,
    }
    if name := next((name for name, value in asked.items() if value), None):
        off = "null" if name == "rand_augment" else "false" if name == "three_augment" else "0"
        raise UserError(
            f"augment: {name} is for images of 1 or 3 channels, and these have {channels}: set it to {off}, or set "
            "data.channels=3"
        )


@contextmanager
def seeded(seed: int, epoch: int, index: int, view: int, stage: int = 0) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's CPU generators depend on these numbers alone; after it they are as before.

    ``stage`` keeps draws for different purposes apart. All numbers are non-negative.
    """
    with preserve_rng_state():
        seed_all(seed, epoch, index, view, stage)
        yield


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """After it Python's, NumPy's and torch's CPU generators are as before: once around several ``seed_all``."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.random.set_rng_state(cpu)


def seed_all(seed: int, epoch: int, index: int, view: int, stage: int = 0) -> None:
    """From here on the generators depend on these numbers alone: within ``preserve_rng_state``."""
    number = mix_seed(seed, epoch, index, view, stage)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(number)


def mix_seed(*numbers: int) -> int:
    """A 63-bit number from whole numbers: the same on every machine, unlike for other numbers."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def augment(image: UInt8[Tensor, "c h w"], size: Size, how: AugmentConfig) -> UInt8[Tensor, "c H W"]:
    """One view at ``size``, drawn from the global generators: call it within ``seeded``.

    Fastest where the memory of ``image`` holds h, w, c, as a decoder's does: torch resizes that in half of the time.
    """
    view: UInt8[Tensor, "c H W"] = view_maker(size, how)(whole(image)).pixels
    return view


@lru_cache(maxsize=64)
def view_maker(size: Size, how: AugmentConfig) -> ViewStep:
    """``augment`` for many images: ask for it before ``seed_all``, for what is imported here may draw too."""
    order = [step for _, step in steps(size, how)]

    def make(view: View) -> View:
        for step in order:
            view = step(view)
        return view

    return make


def one_pixel(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c 1 1"]:
    """The image's mean color: torch 2.15's kernel that resizes bytes fails on this one size."""
    return image.float().mean((1, 2), keepdim=True).round().to(torch.uint8)


def resize(image: UInt8[Tensor, "c h w"], size: Size, interpolation: str = "bicubic") -> UInt8[Tensor, "c H W"]:
    """Antialiased; ``interpolation``: ``bicubic`` or ``bilinear``."""
    if size == (1, 1):
        return one_pixel(image)
    if interpolation == "bicubic" and image.device.type == "cpu":
        return _bicubic(image, size)
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    made: Tensor = F.resize(image, list(size), InterpolationMode(interpolation), antialias=True)
    return made


def _bicubic(image: UInt8[Tensor, "c h w"], size: Size) -> UInt8[Tensor, "c H W"]:
    """What torchvision's ``resize`` does with bytes on a CPU, bit for bit, without the seconds its import takes."""
    if tuple(image.shape[1:]) == size:
        return image
    batch = image[None]  # (1, c, h, w)
    if batch.is_contiguous(memory_format=torch.channels_last) and batch.numel() != batch.stride(0):
        # h, w, c in memory, which the result keeps only if the stride of the one image says so too
        batch = batch.as_strided(batch.shape, (batch.numel(), *batch.stride()[1:]))
    return torch.nn.functional.interpolate(batch, list(size), mode="bicubic", align_corners=False, antialias=True)[0]


def _window(view: View, size: Size) -> View:
    """The image itself, or of a very long one a piece drawn along it, so that covering ``size`` fits into memory."""
    h, w = view.geometry.size
    kept_h = min(h, max(1, _LONGEST * w * size.height // size.width))
    kept_w = min(w, max(1, _LONGEST * h * size.width // size.height))
    if (kept_h, kept_w) == (h, w):
        return view
    top, left = int(torch.randint(h - kept_h + 1, ())), int(torch.randint(w - kept_w + 1, ()))
    piece = view.pixels[:, top : top + kept_h, left : left + kept_w]
    return View(piece, cut(view.geometry, top, left, Size(kept_h, kept_w)))


def _cover(view: View, size: Size) -> View:
    """The image resized so that it just covers ``size``; itself when one side fits already."""
    h, w = view.geometry.size
    scale = max(size.height / h, size.width / w)
    if scale == 1:
        return view
    new = Size(max(size.height, round(h * scale)), max(size.width, round(w * scale)))
    return View(resize(view.pixels, new), resized(view.geometry, new))


def _just_cover(view: View, size: Size) -> View:
    """The image resized, down or up, so that it just covers ``size``: for a square, torchvision's Resize(side)."""
    h, w = view.geometry.size
    if size.height * w >= size.width * h:  # as wide as the view or wider: the height decides
        new = Size(size.height, max(size.width, int(size.height * w / h)))
    else:
        new = Size(max(size.height, int(size.width * h / w)), size.width)
    return View(resize(view.pixels, new), resized(view.geometry, new))


def steps(size: Size, how: AugmentConfig) -> tuple[tuple[str, ViewStep], ...]:
    """What is done to make a view, in order, each under its stage: crop, flip, colors, layout."""
    return (
        *(("crop", step) for step in _crop(how, size)),
        *((("flip", _flip(how.flip)),) if how.flip else ()),
        *((("flip", _flip_vertical(how.flip_vertical)),) if how.flip_vertical else ()),
        *(("colors", step) for step in _colors(how, size)),
        ("layout", _on_pixels(Tensor.contiguous)),
    )


def _on_pixels(step: Step) -> ViewStep:
    """A step that moves no pixel."""
    return lambda view: View(step(view.pixels), view.geometry)


def _crop(how: AugmentConfig, size: Size) -> Iterator[ViewStep]:
    from torchvision.transforms import v2

    if how.crop == "padded":
        yield lambda view: _cover(_window(view, size), size)
        yield _random_crop(v2.RandomCrop(size, padding=_PADDING))
    elif how.crop == "simple":
        around = min(_PADDING, *(side - 1 for side in size))  # no more can be mirrored
        yield lambda view: _just_cover(_window(view, size), size)
        yield _random_crop(v2.RandomCrop(size, padding=around, padding_mode="reflect"))
    else:
        yield _resized_crop(how, Size(2, 2) if size == (1, 1) else size)
        if size == (1, 1):
            yield lambda view: View(one_pixel(view.pixels), resized(view.geometry, size))


def _random_crop(draw: v2.RandomCrop) -> ViewStep:
    """torchvision's RandomCrop."""

    def crop(view: View) -> View:
        box = draw.make_params([view.pixels])
        left, top = box["padding"][:2]
        geometry = cut(view.geometry, box["top"] - top, box["left"] - left, Size(box["height"], box["width"]))
        return View(draw.transform(view.pixels, box), geometry)

    return crop


def _resized_crop(how: AugmentConfig, size: Size) -> ViewStep:
    """torchvision's RandomResizedCrop. The box is copied before it is resized: so it lies in the processor's cache."""
    from torchvision.transforms import InterpolationMode, v2
    from torchvision.transforms.v2 import functional as F

    mode = InterpolationMode(how.interpolation)
    draw = v2.RandomResizedCrop(size, how.crop_scale, how.crop_ratio)

    def crop(view: View) -> View:
        box = draw.make_params([view.pixels])
        top, left, height, width = box["top"], box["left"], box["height"], box["width"]
        piece = view.pixels[:, top : top + height, left : left + width]
        piece = piece[None].contiguous(memory_format=torch.channels_last)[0]  # (c, h, w) as h, w, c in memory
        made: Tensor = F.resize(piece, list(size), mode, antialias=True)
        return View(made, resized(cut(view.geometry, top, left, Size(height, width)), size))

    return crop


def _flip(probability: float) -> ViewStep:
    """Mirrored left to right with that probability."""
    return sometimes(probability, lambda view: View(view.pixels.flip(-1), flipped(view.geometry)))


def _flip_vertical(probability: float) -> ViewStep:
    """Mirrored top to bottom with that probability."""

    def flip(view: View) -> View:
        upside_down: Affine = ((1.0, 0.0, 0.0), (0.0, -1.0, float(view.geometry.size.height)))
        return View(view.pixels.flip(-2), distorted(view.geometry, upside_down))

    return sometimes(probability, flip)


def _colors(how: AugmentConfig, size: Size) -> Iterator[ViewStep]:
    if how.three_augment:
        yield _on_pixels(three_augment)
    if how.rand_augment:
        yield _rand_augment(how.rand_augment, size, how.interpolation)
    elif how.jitters and how.jitter:
        yield _on_pixels(Tensor.contiguous)  # these are faster by channel
        from torchvision.transforms import v2

        jitter = v2.ColorJitter(how.brightness, how.contrast, how.saturation, how.hue)
        yield _on_pixels(sometimes(how.jitter, jitter))
    for probability, step in ((how.grayscale, grayscale), (how.blur, blur), (how.solarize, solarize)):
        if probability:
            yield _on_pixels(sometimes(probability, step))


def _rand_augment(text: str, size: Size, interpolation: str) -> ViewStep:
    """timm's RandAugment; a single channel goes through it as gray of three."""
    run = rand_augment(text, size, interpolation)

    def augmented(view: View) -> View:
        single = len(view.pixels) == 1
        done, affine = run(view.pixels.expand(3, -1, -1) if single else view.pixels)
        return View(grayscale(done)[:1] if single else done, distorted(view.geometry, affine))

    return augmented
