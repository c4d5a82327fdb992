"""timm's RandAugment, its draws untouched, on the bytes themselves: less of the loader's time, the same picture.

timm's operations are Pillow's. What is a line of arithmetic on bytes is done here (invert, posterize, solarize), equal
to Pillow's bit for bit. Shearing and moving shift each row or column by its own amount, so of Pillow's bicubic 4 x 4
taps only 4 count: equal but for less than one value in a thousand, by one grey level, in a fifth of the time. Rotation,
contrast and the other colors are Pillow's own. benchmarks/loader.py measures it.

One deviation: Pillow 13 refuses to keep 0 bits of a value, which timm asks for at magnitude 10 (2 % of the draws of
``m9-mstd0.5``); before, and here, the picture is black then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from numpy import ndarray
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor

from anyres.data.geometry import Affine, composed, rotation
from anyres.flow import Size

Pixels = UInt8[ndarray, "h w 3"]
_FILL = (124, 116, 104)  # 255 x the mean of ImageNet: what geometric operations leave bare
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_VALUES = np.arange(256)
_MIDDLE = 128.0  # taken off before the sums and added after: smaller numbers, smaller errors
_ROUNDING = 2.0**-14  # float32 may fall short of a whole number by so much, and then bytes are cut, not rounded


class Drawn(NamedTuple):
    """A picture on its way through the operations, and where they have moved its pixels; None: nowhere."""

    pixels: Pixels
    affine: Affine | None = None


def rand_augment(text: str, size: Size, interpolation: str) -> Callable[[Tensor], tuple[Tensor, Affine | None]]:
    """timm's RandAugment from its string: uint8 (3, h, w) -> the same, and how its pixels were moved.

    Fastest where the memory holds h, w, 3. ``size`` is the view's, ``interpolation`` is for the geometric operations.
    Draws from Python's and NumPy's global generators.
    """
    from timm.data.auto_augment import rand_augment_transform

    options = {
        "translate_const": int(min(size) * 0.45),
        "img_mean": _FILL,
        "interpolation": _FILTERS[interpolation],
    }
    transform = rand_augment_transform(text, options)
    for op in transform.ops:
        slides = interpolation == "bicubic" and op.name in _SLIDES
        ours = _SLIDES[op.name] if slides else _POINTS.get(op.name)
        op.aug_fn = partial(_follow, ours or partial(_in_pillow, op.aug_fn), _MOVES.get(op.name))
    transform.ops = np.array(transform.ops, dtype=object)  # NumPy draws from it; of a list it makes one at each call

    def run(image: Tensor) -> tuple[Tensor, Affine | None]:
        done: Drawn = transform(Drawn(image.permute(1, 2, 0).contiguous().numpy()))  # (3, h, w) -> (h, w, 3)
        return torch.from_numpy(done.pixels).permute(2, 0, 1), done.affine

    return run


def _follow(
    op: Callable[..., Pixels],
    moves: Callable[[float, Size], Affine] | None,
    drawn: Drawn,
    *values: float | int,
    **options: Any,
) -> Drawn:
    """One operation, and with it where pixels go."""
    pixels = op(drawn.pixels, *values, **options)
    if moves is None:
        return Drawn(pixels, drawn.affine)
    affine = moves(float(values[0]), Size(*pixels.shape[:2]))
    return Drawn(pixels, affine if drawn.affine is None else composed(affine, drawn.affine))


def _in_pillow(op: Callable[..., Image.Image], pixels: Pixels, *values: float, **options: Any) -> Pixels:
    return np.array(op(Image.fromarray(pixels), *values, **options))


def _invert(pixels: Pixels, **_: object) -> Pixels:
    return 255 - pixels


def _posterize(pixels: Pixels, bits: int, **_: object) -> Pixels:
    """The ``bits`` (0 to 8) highest bits of each value."""
    return pixels & np.uint8(256 - 2 ** (8 - bits))


def _solarize(pixels: Pixels, threshold: int, **_: object) -> Pixels:
    """Values from ``threshold`` (0 to 256) on inverted."""
    done: Pixels = pixels ^ ((pixels >= threshold) * np.uint8(255))
    return done


def _solarize_add(pixels: Pixels, add: int, **_: object) -> Pixels:
    """``add`` (0 to 128) on values below 128."""
    done: Pixels = pixels + (pixels < 128) * np.uint8(add)
    return done


def _auto_contrast(pixels: Pixels, **_: object) -> Pixels:
    """Each channel stretched to 0..255."""
    image = Image.fromarray(pixels)
    tables = []
    for low, high in np.array(image.getextrema()).tolist():
        scale = 255.0 / max(high - low, 1)
        stretched = (_VALUES * scale + -low * scale).astype(np.int64).clip(0, 255)
        tables.append(stretched if high > low else _VALUES)
    return np.array(image.point(np.concatenate(tables).tolist()))


def _equalize(pixels: Pixels, **_: object) -> Pixels:
    """Each channel's values spread by their ranks."""
    image = Image.fromarray(pixels)
    tables = []
    for count in np.array(image.histogram()).reshape(3, 256):
        step = int(count.sum() - count[count.nonzero()[0][-1]]) // 255
        ranks = (step // 2 + count.cumsum() - count) // max(step, 1)
        tables.append(ranks.clip(0, 255) if step else _VALUES)
    return np.array(image.point(np.concatenate(tables).tolist()))


def _shear_x(pixels: Pixels, factor: float, *, fillcolor: tuple[int, ...], **_: object) -> Pixels:
    shift: Float64[ndarray, " h"] = factor * (np.arange(len(pixels)) + 0.5)
    return _slide(pixels, shift, fillcolor)


def _shear_y(pixels: Pixels, factor: float, *, fillcolor: tuple[int, ...], **_: object) -> Pixels:
    return _turn(_shear_x(_turn(pixels), factor, fillcolor=fillcolor))


def _move_x(pixels: Pixels, share: float, *, fillcolor: tuple[int, ...], **_: object) -> Pixels:
    return _slide(pixels, np.array([share * pixels.shape[1]]), fillcolor)


def _move_y(pixels: Pixels, share: float, *, fillcolor: tuple[int, ...], **_: object) -> Pixels:
    return _turn(_move_x(_turn(pixels), share, fillcolor=fillcolor))


def _turn(pixels: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "w h 3"]:
    """Rows as columns."""
    turned: Pixels = torch.from_numpy(pixels).transpose(0, 1).contiguous().numpy()
    return turned


def _slide(rows: Pixels, shift: Float64[ndarray, "#h"], fill: tuple[int, ...]) -> Pixels:
    """Row i seen ``shift[i]`` pixels to the right, or all rows ``shift[0]``: Pillow's bicubic filter (a = -1).

    Pixel x is the weighted mean of the four pixels around x + shift, the edge repeated where there is none, and
    ``fill`` where x + shift + 1/2 lies outside.
    """
    n, m, _ = rows.shape
    line = 3 * m
    shift = shift.clip(-m - 1, m + 1)  # all is outside there
    whole = np.floor(shift)
    room = 3 * (int(np.abs(whole).max()) + 4)
    wide = np.empty((n, line + 2 * room), np.uint8)  # beyond two pixels from the edge nothing is used
    wide[:, room:-room] = rows.reshape(n, line)
    wide[:, room - 6 : room].reshape(n, 2, 3)[:] = rows[:, :1]
    wide[:, -room : 6 - room].reshape(n, 2, 3)[:] = rows[:, -1:]
    first = np.arange(n) * wide.shape[1] + room + 3 * (whole.astype(int) - 1)  # of each row's taps
    taps = sliding_window_view(wide.reshape(-1), line + 9)[first]

    d = shift - whole
    weights = np.stack([((2 - d) * d - 1) * d, (d - 2) * d * d + 1, ((1 - d) * d + 1) * d, (d - 1) * d * d])
    w = torch.from_numpy(weights).float()[:, :, None]  # (4, h or 1, 1)
    t = torch.from_numpy(taps).float().sub_(_MIDDLE)
    total = t[:, :line] * w[0]
    for i in (1, 2, 3):
        total.addcmul_(t[:, 3 * i : line + 3 * i], w[i])
    made = total.add_(_MIDDLE + _ROUNDING).clamp_(0, 255).numpy().astype(np.uint8)

    bare = np.tile(np.array(fill, np.uint8), m)
    left, right = (3 * np.ceil([-0.5 - shift, m - 0.5 - shift]).clip(0, m).astype(int)).tolist()
    for i, (start, end) in enumerate(zip(left, right, strict=True)):
        some = made[i] if len(shift) > 1 else made  # one row, or all
        some[..., :start], some[..., end:] = bare[:start], bare[end:]
    return made.reshape(n, m, 3)


_POINTS: dict[str, Callable[..., Pixels]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Posterize": _posterize,
    "PosterizeIncreasing": _posterize,
    "Solarize": _solarize,
    "SolarizeIncreasing": _solarize,
    "SolarizeAdd": _solarize_add,
}
_SLIDES: dict[str, Callable[..., Pixels]] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _move_x,
    "TranslateYRel": _move_y,
}
# An operation shows at (x, y) what was at (x + factor y, y): so a pixel moves the other way.
_MOVES: dict[str, Callable[[float, Size], Affine]] = {
    "Rotate": rotation,
    "ShearX": lambda factor, _: ((1.0, -factor, 0.0), (0.0, 1.0, 0.0)),
    "ShearY": lambda factor, _: ((1.0, 0.0, 0.0), (-factor, 1.0, 0.0)),
    "TranslateXRel": lambda share, size: ((1.0, 0.0, -share * size.width), (0.0, 1.0, 0.0)),
    "TranslateYRel": lambda share, size: ((1.0, 0.0, 0.0), (0.0, 1.0, -share * size.height)),
}
