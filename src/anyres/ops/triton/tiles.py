"""What the kernels share: tiles in and out of memory, their product, and how large they are."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Triton's interpreter, which multiplies the bits of bf16 as if they were integers: there products are of float32."""


@triton.jit
def product(a, b, total):
    """total + a b, accumulated in float32 (of float32: in three TF32 products, near to float32)."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def tile(pointer, row, rows, stride, channel, D: tl.constexpr):
    """Rows of D adjacent channels, as (len(row), len(channel)); zeros outside."""
    inside = (row < rows)[:, None] & (channel < D)[None, :]
    return tl.load(pointer + row[:, None] * stride + channel[None, :], mask=inside, other=0.0)


@triton.jit
def put(pointer, row, rows, stride, channel, D: tl.constexpr, values):
    """Stores what ``tile`` loads."""
    inside = (row < rows)[:, None] & (channel < D)[None, :]
    tl.store(pointer + row[:, None] * stride + channel[None, :], values.to(pointer.dtype.element_ty), mask=inside)


def runs_on(tensor: Tensor) -> bool:
    """Whether kernels take it: on a CUDA device, or in the interpreter."""
    return tensor.is_cuda or bool(INTERPRETED.value)


def adjacent(tensor: Tensor) -> Tensor:
    """Itself where the last axis lies side by side in memory, else a copy that does."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def power(count: int) -> int:
    """The least power of two that is at least ``count`` and 16, which a product of tiles wants."""
    return max(16, 1 << (count - 1).bit_length())


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, like: Tensor, **settings: Any) -> None:
    """Run ``kernel`` on the device of ``like``."""
    if like.is_cuda:
        with torch.cuda.device(like.device):
            kernel[grid](*args, **settings)
    else:
        kernel[grid](*args, **settings)
