"""EMSAv2's attention over few keys, and the norm of the upsampled values that is added to it: kernels and operation.

``torch.ops.anyres.attend_plus``. A program holds one block of queries of one image and goes over its heads: the
attention's answer of a head meets the norm's in registers, and one tensor is written. Only log-sum-exps and the norm's
statistics are kept for the backward pass, which computes scores again.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from anyres.ops import attention as plain
from anyres.ops.triton.residual import norm_backward
from anyres.ops.triton.tiles import adjacent, launch, power, product, put, runs_on, tile


@triton.jit
def forward(
    query, key, value, added, weight, bias, out, lse, mean, rate, scale, eps,
    q_b, q_g, q_n, k_b, k_g, k_m, v_b, v_g, v_m, a_b, a_n, a_c, n, m,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """out (b, n, g * d); lse (b, g, n); mean and rate (b, n). ``added`` (b, n, c) may lie in memory in any way."""
    image = tl.program_id(1).to(tl.int64)
    row, channel = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, DP)
    query, key, value, added = query + image * q_b, key + image * k_b, value + image * v_b, added + image * a_b
    out, lse = out + image * n * G * D, lse + image * G * n
    inside = (row < n)[:, None] & (channel < D)[None, :]
    place = row[:, None] * a_n + channel[None, :] * a_c

    middle = tl.zeros((BN,), tl.float32)
    for h in range(0, G):
        middle += tl.sum(tl.load(added + place + h * D * a_c, mask=inside, other=0.0).to(tl.float32), 1)
    middle /= G * D
    spread = tl.zeros((BN,), tl.float32)
    for h in range(0, G):
        off = tl.load(added + place + h * D * a_c, mask=inside, other=0.0).to(tl.float32) - middle[:, None]
        off = tl.where(inside, off, 0.0)
        spread += tl.sum(off * off, 1)
    steep = tl.rsqrt(spread / (G * D) + eps)
    tl.store(mean + image * n + row, middle, mask=row < n)
    tl.store(rate + image * n + row, steep, mask=row < n)

    for h in range(0, G):
        q = tile(query + h * q_g, row, n, q_n, channel, D)
        top = tl.full((BN,), float("-inf"), tl.float32)
        total = tl.zeros((BN,), tl.float32)
        answer = tl.zeros((BN, DP), tl.float32)
        for start in range(0, m, BM):
            column = start + tl.arange(0, BM)
            k = tile(key + h * k_g, column, m, k_m, channel, D)
            v = tile(value + h * v_g, column, m, v_m, channel, D)
            score = product(q, tl.trans(k), tl.zeros((BN, BM), tl.float32)) * scale
            score = tl.where((column < m)[None, :], score, float("-inf"))
            highest = tl.maximum(top, tl.max(score, 1))
            share = tl.exp(score - highest[:, None])
            fade = tl.exp(top - highest)
            total, top = total * fade + tl.sum(share, 1), highest
            answer = product(share.to(v.dtype), v, answer * fade[:, None])
        tl.store(lse + h * n + row, top + tl.log(total), mask=row < n)
        hat = tl.load(added + place + h * D * a_c, mask=inside, other=0.0).to(tl.float32) - middle[:, None]
        w = tl.load(weight + h * D + channel, mask=channel < D, other=0.0).to(tl.float32)
        b = tl.load(bias + h * D + channel, mask=channel < D, other=0.0).to(tl.float32)
        whole = answer / total[:, None] + hat * steep[:, None] * w[None, :] + b[None, :]
        put(out + h * D, row, n, G * D, channel, D, whole)


@triton.jit
def backward_queries(
    grad, query, key, value, lse, delta, grad_query, scale,
    q_b, q_g, q_n, k_b, k_g, k_m, v_b, v_g, v_m, n, m,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta (b, g, n), the mean of ∂P under P, and grad_query (b, n, g, d), of one head."""
    image, h = (tl.program_id(1) // G).to(tl.int64), tl.program_id(1) % G
    row, channel = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, DP)
    key, value = key + image * k_b + h * k_g, value + image * v_b + h * v_g
    place = image * n * G * D + h * D
    q = tile(query + image * q_b + h * q_g, row, n, q_n, channel, D)
    o = tile(grad + place, row, n, G * D, channel, D)
    level = tl.load(lse + (image * G + h) * n + row, mask=row < n, other=0.0)

    mean = tl.zeros((BN,), tl.float32)
    for start in range(0, m, BM):
        column = start + tl.arange(0, BM)
        k = tile(key, column, m, k_m, channel, D)
        v = tile(value, column, m, v_m, channel, D)
        score = product(q, tl.trans(k), tl.zeros((BN, BM), tl.float32)) * scale
        share = tl.where((column < m)[None, :], tl.exp(score - level[:, None]), 0.0)
        mean += tl.sum(share * product(o, tl.trans(v), tl.zeros((BN, BM), tl.float32)), 1)
    tl.store(delta + (image * G + h) * n + row, mean, mask=row < n)

    answer = tl.zeros((BN, DP), tl.float32)
    for start in range(0, m, BM):
        column = start + tl.arange(0, BM)
        k = tile(key, column, m, k_m, channel, D)
        v = tile(value, column, m, v_m, channel, D)
        score = product(q, tl.trans(k), tl.zeros((BN, BM), tl.float32)) * scale
        share = tl.where((column < m)[None, :], tl.exp(score - level[:, None]), 0.0)
        wanted = product(o, tl.trans(v), tl.zeros((BN, BM), tl.float32))
        answer = product((share * (wanted - mean[:, None]) * scale).to(k.dtype), k, answer)
    put(grad_query + place, row, n, G * D, channel, D, answer)


@triton.jit
def backward_keys(
    grad, query, key, value, lse, delta, grad_key, grad_value, scale,
    q_b, q_g, q_n, k_b, k_g, k_m, v_b, v_g, v_m, n, m,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """grad_key and grad_value (b, m, g, d), of one head and one block of keys over all queries."""
    image, h = (tl.program_id(1) // G).to(tl.int64), tl.program_id(1) % G
    column, channel = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, DP)
    k = tile(key + image * k_b + h * k_g, column, m, k_m, channel, D)
    v = tile(value + image * v_b + h * v_g, column, m, v_m, channel, D)
    query, grad = query + image * q_b + h * q_g, grad + image * n * G * D + h * D
    rows = (image * G + h) * n
    keys, values = tl.zeros((BM, DP), tl.float32), tl.zeros((BM, DP), tl.float32)
    for start in range(0, n, BN):
        row = start + tl.arange(0, BN)
        q = tile(query, row, n, q_n, channel, D)
        o = tile(grad, row, n, G * D, channel, D)
        level = tl.load(lse + rows + row, mask=row < n, other=0.0)
        mean = tl.load(delta + rows + row, mask=row < n, other=0.0)
        score = product(q, tl.trans(k), tl.zeros((BN, BM), tl.float32)) * scale
        share = tl.where((column < m)[None, :], tl.exp(score - level[:, None]), 0.0)
        wanted = product(o, tl.trans(v), tl.zeros((BN, BM), tl.float32))
        values = product(tl.trans(share.to(o.dtype)), o, values)
        keys = product(tl.trans((share * (wanted - mean[:, None]) * scale).to(q.dtype)), q, keys)
    put(grad_key + image * m * G * D + h * D, column, m, G * D, channel, D, keys)
    put(grad_value + image * m * G * D + h * D, column, m, G * D, channel, D, values)


def _constants(query: Tensor, key: Tensor) -> dict[str, int]:
    """Tile and heads: 49 keys, ResTv2's at 224 px, are one block. By the compiler's registers, not yet by time."""
    g, d, m = query.shape[1], query.shape[3], key.shape[2]
    rows, warps = (32, 8) if d > 64 else (64, 4)
    return {"G": g, "D": d, "DP": power(d), "BN": rows, "BM": 64 if m > 32 else 32, "num_warps": warps}


@torch.library.custom_op("anyres::attend_plus", mutates_args=())
def attend_plus_op(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out (b, n, c), the log-sum-exp (b, g, n), and the norm's means and inverse deviations (b, n)."""
    made = _empty(query)
    constants, (b, _, n, _), m = _constants(query, key), query.shape, key.shape[2]
    q, k, v = adjacent(query), adjacent(key), adjacent(value)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *added.stride())
    args = (q, k, v, added, weight, bias, *made, scale, eps, *strides, n, m)
    launch(forward, (triton.cdiv(n, constants["BN"]), b), *args, like=query, **constants)
    return made


@torch.library.custom_op("anyres::attend_plus_backward", mutates_args=())
def attend_plus_backward_op(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, added: Tensor, weight: Tensor, lse: Tensor,
    mean: Tensor, rate: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and added, and the sums (3, c) of the norm's weight and bias (and nothing)."""
    constants, (b, g, n, d), m = _constants(query, key), query.shape, key.shape[2]
    grad, q, k, v = grad.contiguous(), adjacent(query), adjacent(key), adjacent(value)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    delta = torch.empty_like(lse)
    by_query = query.new_empty(b, n, g, d)
    by_key, by_value = (key.new_empty(b, m, g, d) for _ in range(2))
    args: tuple[Any, ...] = (grad, q, k, v, lse, delta, by_query, scale, *strides, n, m)
    launch(backward_queries, (triton.cdiv(n, constants["BN"]), b * g), *args, like=query, **constants)
    args = (grad, q, k, v, lse, delta, by_key, by_value, scale, *strides, n, m)
    launch(backward_keys, (triton.cdiv(m, constants["BM"]), b * g), *args, like=query, **constants)
    by_added, _, sums = norm_backward(None, grad, added, None, None, None, weight, mean, rate, added.dtype)
    return by_query.transpose(1, 2), by_key.transpose(1, 2), by_value.transpose(1, 2), by_added, sums


def _empty(query: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, g, n, d = query.shape
    rows = [query.new_empty(shape, dtype=torch.float32) for shape in ((b, g, n), (b, n), (b, n))]
    return query.new_empty(b, n, g * d), rows[0], rows[1], rows[2]


@attend_plus_op.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, weight: Tensor, bias: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(query)


@attend_plus_backward_op.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, added: Tensor, weight: Tensor, lse: Tensor,
    mean: Tensor, rate: Tensor, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    laid = [x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (query, key, value)]
    return (*laid, added.new_empty(added.shape), grad.new_empty(3, grad.shape[2], dtype=torch.float32))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.scale = inputs[6]
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx: Any, grad: Tensor, *_others: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, added, weight, bias, *kept = ctx.saved_tensors
    backward = torch.ops.anyres.attend_plus_backward
    *ours, sums = backward(grad, query, key, value, added, weight, *kept, ctx.scale)
    return (*ours, sums[0].to(weight.dtype), sums[1].to(bias.dtype), None, None)


attend_plus_op.register_autograd(_gradient, setup_context=_keep)


def attend_plus(
    query: Tensor, key: Tensor, value: Tensor, added: Tensor, norm: nn.LayerNorm, scale: float | None = None
) -> Tensor:
    """``anyres.ops.attention.attend_plus`` by one kernel; off CUDA that itself."""
    if not runs_on(query):
        return plain.attend_plus_plain(query, key, value, added, norm, scale)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    out: Tensor = torch.ops.anyres.attend_plus(query, key, value, added, norm.weight, norm.bias, scale, norm.eps)[0]
    return out
