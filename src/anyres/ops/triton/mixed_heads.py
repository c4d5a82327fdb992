"""The operations over ``mixed_heads_kernels``: CaiT's talking heads and ResTv1's mixed and normalised ones.

``torch.ops.anyres.talking_heads`` and ``torch.ops.anyres.normed_heads``, with gradients, take q, k, v in float32, bf16
or fp16 and the heads' weights in float32 (as autocast leaves them) or any other dtype. Products are of q's dtype,
everything between them, softmax and mixing included, is float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyres.ops import mixed_heads as plain
from anyres.ops.triton import mixed_heads_kernels as kernels
from anyres.ops.triton.tiles import adjacent, launch, power, runs_on

KEYS = 32
"""Of a tile, for all heads at once. Tiles are chosen by the compiler's count of registers, not yet by time."""
MOST_HEADS = 8
"""A program holds the planes of all heads, and its code grows with their square: more heads take the plain way."""


class Shape(NamedTuple):
    """b images, g heads of d channels, n queries, m keys."""

    b: int
    g: int
    n: int
    m: int
    d: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> Shape:
        """Of q and k, (b, g, _, d)."""
        b, g, n, d = query.shape
        return cls(b, g, n, key.shape[2], d)

    @property
    def rows(self) -> int:
        """Queries of a tile."""
        return 32 if self.g <= 4 else 16

    def programs(self, count: int, size: int) -> tuple[int, int]:
        """The grid: blocks of ``size`` queries or keys, images."""
        return -(-count // size), self.b

    def constants(self, talk: bool, *, backward: bool) -> dict[str, Any]:
        """What a kernel is compiled for."""
        warps = 8 if backward and self.g <= 4 else 4
        sizes = {"G": self.g, "D": self.d, "DP": power(self.d), "BN": self.rows, "BM": KEYS}
        return {"TALK": talk, **sizes, "num_warps": warps}


def run_forward(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor, after: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """out (b, n, g, d), lse (b, g, n), squares (b, blocks, g); with ``after`` the heads talk.

    What is yet to be normalised may be too small for fp16: there it is float32.
    """
    s, talk = Shape.of(query, key), after is not None
    grid = s.programs(s.n, s.rows)
    dtype = query.dtype if talk or query.dtype == torch.bfloat16 else torch.float32
    out = query.new_empty(s.b, s.n, s.g, s.d, dtype=dtype)
    lse = query.new_empty(s.b, s.g, s.n, dtype=torch.float32)
    squares = query.new_empty(s.b, grid[0], s.g, dtype=torch.float32)
    q, k, v = adjacent(query), adjacent(key), adjacent(value)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    args = (q, k, v, before, after, bias, out, lse, squares, *strides, s.n, s.m)
    launch(kernels.forward, grid, *args, like=query, **s.constants(talk, backward=False))
    return out, lse, squares


def run_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, before: Tensor, lse: Tensor,
    after: Tensor | None = None, bias: Tensor | None = None, rate: Tensor | None = None, factor: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v, as (b, g, n or m, d), and of both mixings (g, g)."""
    s, talk = Shape.of(query, key), after is not None
    grad, q, k, v = grad.contiguous(), adjacent(query), adjacent(key), adjacent(value)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    delta = torch.empty_like(lse)
    rate, factor = (lse if each is None else each for each in (rate, factor))  # talking heads read none
    grad_query = query.new_empty(s.b, s.n, s.g, s.d)
    grad_key, grad_value = (key.new_empty(s.b, s.m, s.g, s.d) for _ in range(2))
    grid = s.programs(s.n, s.rows)
    parts = [query.new_zeros(s.b, grid[0], s.g, s.g, dtype=torch.float32) for _ in range(2)]
    sizes = (*strides, s.n, s.m)
    args: tuple[Any, ...] = (grad, q, k, v, before, after, rate, factor, lse, delta, grad_query, *parts, *sizes)
    launch(kernels.backward_queries, grid, *args, like=query, **s.constants(talk, backward=True))
    args = (grad, q, k, v, before, after, bias, rate, factor, lse, delta, grad_key, grad_value, *sizes)
    launch(kernels.backward_keys, s.programs(s.m, KEYS), *args, like=query, **s.constants(talk, backward=True))
    q, k, v = (part.transpose(1, 2) for part in (grad_query, grad_key, grad_value))
    return q, k, v, parts[0].sum((0, 1)), parts[1].sum((0, 1))


@torch.library.custom_op("anyres::talking_heads", mutates_args=())
def talking_op(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor, offset: Tensor | None, after: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """out (b, n, g, d), and the log-sum-exp (b, g, n) for the backward pass."""
    weights = (weight.float().contiguous() for weight in (before, after, bias))
    out, lse, _ = run_forward(query, key, value, *weights)
    return out, lse


@torch.library.custom_op("anyres::talking_heads_backward", mutates_args=())
def talking_backward_op(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, before: Tensor, after: Tensor, bias: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, before, after."""
    wide = [weight.float().contiguous() for weight in (before, after, bias)]
    q, k, v, by_before, by_after = run_backward(grad, query, key, value, wide[0], lse, wide[1], wide[2])
    return q, k, v, by_before.to(before.dtype), by_after.to(after.dtype)


@torch.library.custom_op("anyres::normed_heads", mutates_args=())
def normed_op(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor, offset: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """out (b, n, g, d), the log-sum-exp (b, g, n), and the planes' inverse deviations (b, g). Values are centred."""
    out, lse, squares = run_forward(query, key, value, before.float().contiguous(), None, None)
    rate = (squares.sum(1) / (query.shape[2] * key.shape[2]) + eps).rsqrt()
    return (out * rate[:, None, :, None]).to(query.dtype), lse, rate


@torch.library.custom_op("anyres::normed_heads_backward", mutates_args=())
def normed_backward_op(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, before: Tensor, out: Tensor, lse: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, before.

    O = r (P - 1 / m) V with r = (Σ (P - 1 / m)² / n m + eps)^-1/2, so ∂r = Σ ∂O O / r, and
    ∂P = r ∂O Vᵀ - r³ ∂r (P - 1 / m) / n m, of which the softmax does not see the constant.
    """
    factor = -(rate**2) * (grad.float() * out).sum((1, 3)) / (query.shape[2] * key.shape[2])
    q, k, v, by_before, _ = run_backward(
        grad, query, key, value, before.float().contiguous(), lse, rate=rate, factor=factor
    )
    return q, k, v, by_before.to(before.dtype)


@talking_op.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor, offset: Tensor | None, after: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    return _empty(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@talking_backward_op.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, before: Tensor, after: Tensor, bias: Tensor, lse: Tensor
) -> tuple[Tensor, ...]:
    return (*_gradients(query, key, value), torch.empty_like(before), torch.empty_like(after))


@normed_op.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor, offset: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows = query.new_empty(query.shape[:3], dtype=torch.float32)
    return _empty(query), rows, query.new_empty(query.shape[:2], dtype=torch.float32)


@normed_backward_op.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, before: Tensor, out: Tensor, lse: Tensor, rate: Tensor
) -> tuple[Tensor, ...]:
    return (*_gradients(query, key, value), torch.empty_like(before))


def _empty(like: Tensor) -> Tensor:
    """(b, n, g, d)."""
    return like.new_empty(like.shape[0], like.shape[2], like.shape[1], like.shape[3])


def _gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
    """(b, g, n, d), laid out as (b, n, g, d)."""
    return tuple(_empty(each).transpose(1, 2) for each in tensors)


def _keep_talking(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _talking_gradient(ctx: Any, grad: Tensor, _lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, before, offset, after, bias, lse = ctx.saved_tensors
    backward = torch.ops.anyres.talking_heads_backward
    q, k, v, by_before, by_after = backward(grad, query, key, value, before, after, bias, lse)
    # Σ ∂A over the plane, where A V = ... + bias Σ V
    by_bias = (grad.float().sum(1) * value.float().sum(2)).sum((0, 2)).to(bias.dtype)
    return q, k, v, by_before, _zero(offset), by_after, by_bias


def _keep_normed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.mark_non_differentiable(*output[1:])


def _normed_gradient(ctx: Any, grad: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, before, offset, *made = ctx.saved_tensors
    answers = torch.ops.anyres.normed_heads_backward(grad, query, key, value, before, *made)
    return (*answers, _zero(offset), None)


def _zero(offset: Tensor | None) -> Tensor | None:
    """Its gradient: it is the same for all keys, so the softmax does not see it."""
    return None if offset is None else torch.zeros_like(offset)


talking_op.register_autograd(_talking_gradient, setup_context=_keep_talking)
normed_op.register_autograd(_normed_gradient, setup_context=_keep_normed)


def talking_heads(
    query: Tensor, key: Tensor, value: Tensor, before: Tensor, offset: Tensor | None, after: Tensor, bias: Tensor
) -> Tensor:
    """``anyres.ops.mixed_heads.talking_heads`` by one kernel; with more than MOST_HEADS, and off CUDA, that itself."""
    if query.shape[1] > MOST_HEADS or not runs_on(query):
        return plain.talking_heads_plain(query, key, value, before, offset, after, bias)
    out: Tensor = torch.ops.anyres.talking_heads(query, key, value, before, offset, after, bias)[0]
    return out.flatten(2)  # (b, n, g, d) -> (b, n, c)


def normed_heads(query: Tensor, key: Tensor, value: Tensor, mixing: Tensor, offset: Tensor | None) -> Tensor:
    """``anyres.ops.mixed_heads.normed_heads`` by one kernel; with more than MOST_HEADS, and off CUDA, that itself."""
    if query.shape[1] > MOST_HEADS or not runs_on(query):
        return plain.normed_heads_plain(query, key, value, mixing, offset)
    value = value - value.mean(dim=2, keepdim=True)
    out: Tensor = torch.ops.anyres.normed_heads(query, key, value, mixing, offset, plain.EPS)[0]
    return out.flatten(2)  # (b, n, g, d) -> (b, n, c)
