"""x + factor γ y and the layer norm of it, read once and written once: kernels and operation.

``torch.ops.anyres.add_norm``. Rows are tokens, a program holds whole rows. The sum has the dtype that PyTorch's
arithmetic would give it; its norm that of y, so under autocast, where the sum is float32, what the next linear layer
would round it to. Everything in between is float32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from anyres.ops import residual as plain
from anyres.ops.triton.tiles import launch, runs_on

PROGRAMS = 1024
"""The backward pass sums over rows in at most so many parts."""


@triton.jit
def forward(
    x, y, gamma, factor, weight, bias, total, normed, mean, rate, rows, tokens, eps,
    C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """total = x + factor γ y and normed (rows, C); mean and rate (rows). None stands for what there is not."""
    row, channel = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BC)
    inside, real = (row < rows)[:, None] & (channel < C)[None, :], channel < C
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    added = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if gamma is not None:
        added *= tl.load(gamma + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    if factor is not None:
        added *= tl.load(factor + row // tokens, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    stored = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + added).to(total.dtype.element_ty)
    tl.store(total + place, stored, mask=inside)
    wide = stored.to(tl.float32)
    middle = tl.sum(wide, 1) / C
    off = tl.where(inside, wide - middle[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(off * off, 1) / C + eps)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(rate + row, scale, mask=row < rows)
    off *= scale[:, None]
    if weight is not None:
        off *= tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)[None, :]
        off += tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)[None, :]
    tl.store(normed + place, off.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    by_total, by_normed, total, y, gamma, factor, weight, mean, rate, by_x, by_y, parts, rows, tokens,
    C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """by_x, by_y (rows, C); parts (programs, 3, C): this program's sums for weight, bias and γ."""
    channel = tl.arange(0, BC)
    real = channel < C
    for_weight, for_bias = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for_gamma = tl.zeros((BC,), tl.float32)
    for first in range(tl.program_id(0) * BR, rows, tl.num_programs(0) * BR):
        row = first + tl.arange(0, BR)
        inside = (row < rows)[:, None] & real[None, :]
        place = row.to(tl.int64)[:, None] * C + channel[None, :]
        scale = tl.load(rate + row, mask=row < rows, other=0.0)[:, None]
        middle = tl.load(mean + row, mask=row < rows, other=0.0)[:, None]
        hat = tl.where(inside, tl.load(total + place, mask=inside, other=0.0).to(tl.float32) - middle, 0.0) * scale
        grad = tl.load(by_normed + place, mask=inside, other=0.0).to(tl.float32)
        for_weight += tl.sum(grad * hat, 0)
        for_bias += tl.sum(grad, 0)
        if weight is not None:
            grad *= tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)[None, :]
        along, level = tl.sum(grad * hat, 1) / C, tl.sum(grad, 1) / C
        grad = scale * (grad - hat * along[:, None] - level[:, None])
        if by_total is not None:
            grad += tl.load(by_total + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(by_x + place, grad.to(by_x.dtype.element_ty), mask=inside)
        if y is not None:
            if factor is not None:
                grad *= tl.load(factor + row // tokens, mask=row < rows, other=0.0).to(tl.float32)[:, None]
            if gamma is not None:
                for_gamma += tl.sum(grad * tl.load(y + place, mask=inside, other=0.0).to(tl.float32), 0)
                grad *= tl.load(gamma + channel, mask=real, other=0.0).to(tl.float32)[None, :]
            tl.store(by_y + place, grad.to(by_y.dtype.element_ty), mask=inside)
    part = parts + tl.program_id(0) * 3 * C + channel
    tl.store(part, for_weight, mask=real)
    tl.store(part + C, for_bias, mask=real)
    tl.store(part + 2 * C, for_gamma, mask=real)


def _tiles(rows: int, channels: int) -> tuple[int, dict[str, int]]:
    """Blocks of rows, and what the kernel is compiled for: about 2048 numbers a program."""
    wide = triton.next_power_of_2(channels)
    high = max(1, min(16, 2048 // wide))
    return triton.cdiv(rows, high), {"C": channels, "BR": high, "BC": wide, "num_warps": 4 if wide <= 1024 else 8}


def norm_backward(
    by_total: Tensor | None, by_normed: Tensor, total: Tensor, y: Tensor | None, gamma: Tensor | None,
    factor: Tensor | None, weight: Tensor | None, mean: Tensor, rate: Tensor, x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """Gradients of x and y, and the sums (3, c) for weight, bias and γ, of tokens (b, n, c)."""
    rows, channels = total.shape[0] * total.shape[1], total.shape[2]
    blocks, constants = _tiles(rows, channels)
    programs = min(blocks, PROGRAMS)
    by_x = torch.empty_like(total, dtype=x_dtype, memory_format=torch.contiguous_format)
    by_y = None if y is None else torch.empty_like(y, memory_format=torch.contiguous_format)
    parts = total.new_empty(programs, 3, channels, dtype=torch.float32)
    whole = [None if each is None else each.contiguous() for each in (by_total, by_normed, total, y)]
    args = (*whole, gamma, factor, weight, mean, rate, by_x, by_y, parts, rows, total.shape[1])
    launch(backward, (programs,), *args, like=total, **constants)
    return by_x, by_y, parts.sum(0)


@torch.library.custom_op("anyres::add_norm", mutates_args=())
def add_norm_op(
    x: Tensor, y: Tensor, gamma: Tensor | None, factor: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sum and its norm (b, n, c), and the rows' means and inverse deviations (b, n)."""
    total, normed, mean, rate = _empty(x, y, gamma)
    blocks, constants = _tiles(mean.numel(), x.shape[2])
    args = (x.contiguous(), y.contiguous(), gamma, factor, weight, bias, total, normed, mean, rate)
    launch(forward, (blocks,), *args, mean.numel(), x.shape[1], eps, like=x, **constants)
    return total, normed, mean, rate


@torch.library.custom_op("anyres::add_norm_backward", mutates_args=())
def add_norm_backward_op(
    by_total: Tensor, by_normed: Tensor, total: Tensor, y: Tensor, gamma: Tensor | None, factor: Tensor | None,
    weight: Tensor | None, mean: Tensor, rate: Tensor, x_like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x and y, and the sums (3, c) for weight, bias and γ."""
    by_x, by_y, sums = norm_backward(by_total, by_normed, total, y, gamma, factor, weight, mean, rate, x_like.dtype)
    assert by_y is not None
    return by_x, by_y, sums


def _empty(x: Tensor, y: Tensor, gamma: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, y.dtype if gamma is None else torch.promote_types(y.dtype, gamma.dtype))
    rows = [x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2)]
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape, dtype=y.dtype), rows[0], rows[1]


@add_norm_op.register_fake
def _(
    x: Tensor, y: Tensor, gamma: Tensor | None, factor: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty(x, y, gamma)


@add_norm_backward_op.register_fake
def _(
    by_total: Tensor, by_normed: Tensor, total: Tensor, y: Tensor, gamma: Tensor | None, factor: Tensor | None,
    weight: Tensor | None, mean: Tensor, rate: Tensor, x_like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = total.shape
    return x_like.new_empty(shape), y.new_empty(shape), total.new_empty(3, shape[2], dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, gamma, factor, weight, bias, _ = inputs
    total, _, mean, rate = output
    ctx.save_for_backward(x.new_empty(0), y, gamma, factor, weight, bias, total, mean, rate)
    ctx.mark_non_differentiable(mean, rate)


def _gradient(ctx: Any, by_total: Tensor, by_normed: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
    x_like, y, gamma, factor, weight, bias, total, mean, rate = ctx.saved_tensors
    backward = torch.ops.anyres.add_norm_backward
    by_x, by_y, sums = backward(by_total, by_normed, total, y, gamma, factor, weight, mean, rate, x_like)
    vectors = [
        None if like is None else by.to(like.dtype) for by, like in zip(sums, (weight, bias, gamma), strict=True)
    ]
    return by_x, by_y, vectors[2], None, vectors[0], vectors[1], None


add_norm_op.register_autograd(_gradient, setup_context=_keep)


def add_norm(
    x: Tensor, y: Tensor, gamma: Tensor | None, drop: Callable[[Tensor], Tensor] | None, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """``anyres.ops.residual.add_norm`` by one kernel; off CUDA that itself.

    ``drop`` is asked for its factor per image: it draws the same.
    """
    if not runs_on(x):
        return plain.add_norm_plain(x, y, gamma, drop, norm)
    factor = None if drop is None else drop(y.new_ones(y.shape[0], 1, 1, dtype=torch.float32)).flatten()
    total, normed, _, _ = torch.ops.anyres.add_norm(x, y, gamma, factor, norm.weight, norm.bias, norm.eps)
    return total, normed
