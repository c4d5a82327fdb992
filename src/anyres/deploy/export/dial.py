"""The first part of an exported file: bytes of an image and a size -> the model's input, as evaluation prepares it.

``data.views.eval_view`` cuts, resizes and crops by PyTorch's integer arithmetic. Here the three are two matrix
products, one for rows and one for columns, whose weights are rounded as PyTorch rounds them: so an engine that knows
nothing but products gives the same gray levels. Every number that decides them is an integer tensor, so no free size is
branched on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor, nn

from anyres.data.views import LONGEST
from anyres.flow import Size

LARGEST = 4096
"""The longest side, in pixels, that the dial of a file can be set to."""
_MOST_COVERED = 2**24  # samples of an axis before it is cropped: beyond any
_BITS = 15  # of PyTorch's weights for bytes: below 2^15 in size
_MOST_BITS = 22
_PARTS = 64.0  # of a unit of the kernel, at which it is known exactly
_COARSE = 2.0**-19  # the unit of the kernel's exact part


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the input of an exported file's model."""

    mean: tuple[float, ...]  # of each channel, of pixels in [0, 1]
    std: tuple[float, ...]  # of each channel
    crop: float = 0.875  # the center crop's share of a side, in (0, 1]
    warp: bool | int = False  # resize whatever the shape: always, never, or where both sides have so many pixels
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # antialiased

    def warps(self, size: Size) -> bool:
        """Whether an image is resized to this size whatever its shape."""
        return self.warp if isinstance(self.warp, bool) else min(size) >= self.warp


class Dial(nn.Module):
    """Images uint8 (b, h, w, c) and a size int64 (2,), height and width from 2 to ``LARGEST`` -> normalized pixels
    float32 (b, c, H, W)."""

    scale: Tensor
    shift: Tensor
    covers: Tensor

    def __init__(self, how: Preparation) -> None:
        super().__init__()
        self.how = how
        std = torch.tensor(how.std, dtype=torch.float64)
        mean = torch.tensor(how.mean, dtype=torch.float64)
        # as data.mix.normalize has them
        self.register_buffer("scale", (1 / (255 * std)).float().view(-1, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(-1, 1, 1))
        # int(side / crop) of every side, exactly as Python divides
        covers = [int(side / how.crop) for side in range(LARGEST + 1)]
        self.register_buffer("covers", torch.tensor(covers, dtype=torch.int64))

    def forward(self, image: UInt8[Tensor, "b h w c"], size: Int64[Tensor, " 2"]) -> Float32[Tensor, "b c H W"]:
        """See the class."""
        rows: Any = size[0].item()  # without int(), which an exporter would take for a constant
        columns: Any = size[1].item()
        for side in (rows, columns):
            torch._check(side >= 2)
            torch._check(side <= LARGEST)
        h, w = image.shape[1:3]
        down, across = self._axes(h, w, size)
        x = image.permute(0, 3, 1, 2).to(torch.float32)
        x = _bytes(x @ _matrix(across, columns, w, self.how.interpolation).T)  # (b, c, h, w) -> (b, c, h, W)
        x = _bytes(_matrix(down, rows, h, self.how.interpolation) @ x)  # (b, c, h, W) -> (b, c, H, W)
        return x * self.scale + self.shift

    def _axes(self, height: int, width: int, wanted: Tensor) -> tuple[_Axis, _Axis]:
        """Rows and columns of ``data.views.eval_plan``, in integers."""
        h, w = _number(height), _number(width)
        zero = torch.zeros_like(wanted[0])
        warped = (
            _Axis(zero, h, wanted[0], zero),
            _Axis(zero, w, wanted[1], zero),
        )
        if self.how.warp is True:
            return warped
        cover = self.covers[wanted]
        tall, wide = cover[0], cover[1]
        one = torch.ones_like(tall)
        w_kept = torch.minimum(w, torch.maximum(one, LONGEST * h * wide // tall))
        h_kept = torch.minimum(h, torch.maximum(one, LONGEST * w * tall // wide))
        by_height = tall * w_kept >= wide * h_kept  # the height decides
        covered = (
            torch.where(by_height, tall, torch.maximum(tall, wide * h_kept // w_kept)),
            torch.where(by_height, torch.maximum(wide, tall * w_kept // h_kept), wide),
        )
        down = _Axis((h - h_kept) // 2, h_kept, covered[0], _half(covered[0] - wanted[0]))
        across = _Axis((w - w_kept) // 2, w_kept, covered[1], _half(covered[1] - wanted[1]))
        if self.how.warp is False:
            return down, across
        warps = torch.minimum(wanted[0], wanted[1]) >= self.how.warp
        return _chosen(warps, warped[0], down), _chosen(warps, warped[1], across)


@dataclass(frozen=True)
class _Axis:
    """What becomes of one axis, each number an int64 tensor (): samples ``first`` to ``first + old`` are resized to
    ``new``, of which the view begins at ``at``."""

    first: Tensor
    old: Tensor
    new: Tensor
    at: Tensor


def _chosen(yes: Tensor, one: _Axis, other: _Axis) -> _Axis:
    pairs = ((one.first, other.first), (one.old, other.old), (one.new, other.new), (one.at, other.at))
    return _Axis(*(torch.where(yes, a, b) for a, b in pairs))


def _number(side: int) -> Int64[Tensor, ""]:
    return torch.scalar_tensor(side, dtype=torch.int64)


def _half(rest: Int64[Tensor, ""]) -> Int64[Tensor, ""]:
    """``round(rest / 2)`` of Python: halves go to the even number."""
    return (rest + rest // 2 % 2) // 2


def _matrix(axis: _Axis, count: int, samples: int, interpolation: str) -> Float32[Tensor, "count samples"]:
    """The antialiased resampling of one axis, and its crop, as a matrix, each weight as PyTorch has it for bytes."""
    new: Any = axis.new.item()
    torch._check(new >= 2)
    torch._check(new <= _MOST_COVERED)
    made = torch.arange(new)[:, None] * 2 + 1  # twice the centers, in units of a resized sample
    given = (torch.arange(samples) - axis.first)[None, :] * 2 + 1  # twice those of the image's own samples
    inside = (given > 0) & (given < 2 * axis.old)
    longest = 2 * torch.maximum(axis.old, axis.new)  # of one unit of the kernel
    apart = torch.minimum((given * axis.new - made * axis.old).abs(), 2 * longest)
    coarse, fine = _KERNELS[interpolation](*_split(apart.to(torch.float32), longest.to(torch.float32)))
    zero = torch.zeros_like(fine)
    rounded = _rounded(torch.where(inside, coarse, zero), torch.where(inside, fine, zero))
    return rounded.index_select(0, torch.arange(count) + axis.at)


def _split(apart: Float32[Tensor, "new old"], longest: Float32[Tensor, ""]) -> tuple[Tensor, Tensor]:
    """A distance in units of the kernel, below 2, as ``q`` 64ths, a whole number, and the small rest."""
    q = torch.floor(_PARTS * apart / longest)
    return q, (_PARTS * apart - q * longest) / (_PARTS * longest)


def _cubic(q: Float32[Tensor, "new old"], rest: Float32[Tensor, "new old"]) -> tuple[Tensor, Tensor]:
    """Keys' kernel with a = -1/2, as Pillow and timm have it: at ``q`` 64ths, exactly, in units of 2^-19, and what
    ``rest`` adds to that."""
    d = q / _PARTS
    near = (3 * q - 320) * q * q + 524288
    far = ((320 - q) * q - 32768) * q + 1048576
    more_near = ((1.5 * rest + (4.5 * d - 2.5)) * rest + (4.5 * d - 5) * d) * rest
    more_far = ((-0.5 * rest + (2.5 - 1.5 * d)) * rest + ((5 - 1.5 * d) * d - 4)) * rest
    zero = torch.zeros_like(d)
    coarse = torch.where(q < _PARTS, near, torch.where(q < 2 * _PARTS, far, zero))
    return coarse, torch.where(q < _PARTS, more_near, torch.where(q < 2 * _PARTS, more_far, zero))


def _triangle(q: Float32[Tensor, "new old"], rest: Float32[Tensor, "new old"]) -> tuple[Tensor, Tensor]:
    """The same of the bilinear kernel."""
    zero = torch.zeros_like(q)
    return torch.where(q < _PARTS, (_PARTS - q) * 8192, zero), torch.where(q < _PARTS, -rest, zero)


_KERNELS = {"bicubic": _cubic, "bilinear": _triangle}


def _rounded(coarse: Float32[Tensor, "new old"], fine: Float32[Tensor, "new old"]) -> Float32[Tensor, "new old"]:
    """Weights with rows that sum to one, each a multiple of PyTorch's unit, rounded as it rounds them in float64.

    Engines may have float32 alone, which rounds one weight in some thousands otherwise. So the weight is found as a
    whole number of units first, and corrected by what is left of an exact remainder. All products of the remainder fit
    into 24 bits.
    """
    high = torch.floor(coarse / 1024)
    high_sum = 1024 * high.sum(dim=1, keepdim=True)
    low_sum = (coarse - 1024 * high).sum(dim=1, keepdim=True)
    total = high_sum + low_sum
    more = fine.sum(dim=1, keepdim=True) + (low_sum - (total - high_sum)) * _COARSE
    total, exact = total * _COARSE + more, total * _COARSE
    left = more - (total - exact)  # the sum of a row is total + left
    weights = (coarse * _COARSE + fine) / total
    unit = _unit(weights.max())  # of all samples, also those that are cropped off
    units, more_units = coarse * (_COARSE * unit), fine * unit
    whole = torch.floor((units + more_units) / total + 0.5)
    first = torch.floor(total * 8) / 8  # the sum in three parts
    second = torch.floor((total - first) * 1024) / 1024
    third = total - first - second
    rest = (((units - whole * first) - whole * second) - whole * third) + (more_units - whole * left)
    rest = rest / total
    nearest = torch.where(weights < 0, torch.ceil(rest - 0.5), torch.floor(rest + 0.5))  # halves away from zero
    return (whole + nearest) / unit


def _unit(largest: Float32[Tensor, ""]) -> Float32[Tensor, ""]:
    """The power of two that PyTorch's integer weights are multiples of the inverse of: the largest weight stays below
    2^15."""
    powers = torch.tensor([2.0**i for i in range(1, _MOST_BITS + 1)])
    fits = largest * powers + 0.5 < 2.0**_BITS
    return torch.where(fits, powers, torch.ones_like(powers)).max()


def _bytes(x: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "b c h w"]:
    """Rounded to whole gray levels in [0, 255]."""
    return torch.clamp(torch.floor(x + 0.5), 0, 255)
