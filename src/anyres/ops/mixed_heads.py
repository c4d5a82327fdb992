"""Attention whose heads are mixed: CaiT's talking heads, ResTv1's mixed and normalized ones.

The plain forms store scores, (b, g, n, m); the kernels of ``anyres.ops.triton`` do not. They are called where they are
in use (``anyres.ops.kernels``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyres.ops.kernels import kernel_for

EPS = 1e-5
"""Of the instance norm."""
KEY_MULTIPLE = 16
"""Programs for a CPU pad their keys to a multiple of this: softmax and products without a remainder are faster
(OpenVINO bf16: 208 keys instead of 196, 0.7 of a softmax's time; 64 instead of 49, 0.3)."""
MASKED = -1e4
"""Added to an attention score, masks it out."""


def mix(
    scores: Float[Tensor, "b g n m"], weight: Float[Tensor, "g g"], bias: Float[Tensor, " g"] | None
) -> Float[Tensor, "b g n m"]:
    """A linear layer over the head axis, as a matrix product with the flattened scores: nothing is permuted.

    As a 1x1 convolution of two channels it takes oneDNN 14 to 27 times as long in bf16 (2x784x49 and 2x16384x1024), up
    to twice in float32.
    """
    flat = scores.flatten(2)  # (b, g, n * m)
    mixed = weight @ flat if bias is None else torch.baddbmm(bias[:, None], weight.expand(flat.shape[0], -1, -1), flat)
    return mixed.view(scores.shape)


def softmax(scores: Float[Tensor, "... m"]) -> Float[Tensor, "... m"]:
    """Over the last axis, at least in float32."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def talking_heads(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    before: Float[Tensor, "g g"],
    offset: Float[Tensor, " g"] | None,
    after: Float[Tensor, "g g"],
    bias: Float[Tensor, " g"],
) -> Float[Tensor, "b n c"]:
    """(after softmax(before Q Kᵀ + offset) + bias) V, the heads concatenated; the scale is in the query already."""
    kernel = kernel_for("talking_heads") or talking_heads_plain
    heads: Tensor = kernel(query, key, value, before, offset, after, bias)
    return heads


def talking_heads_plain(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    before: Float[Tensor, "g g"],
    offset: Float[Tensor, " g"] | None,
    after: Float[Tensor, "g g"],
    bias: Float[Tensor, " g"],
) -> Float[Tensor, "b n c"]:
    """``talking_heads`` in PyTorch's operations."""
    scores = query @ key.mT  # one name for all: what it held before is freed
    scores = mix(scores, before, offset)
    scores = softmax(scores).to(value.dtype)
    scores = mix(scores, after, bias)
    return (scores @ value).transpose(1, 2).flatten(2)  # (b, g, n, d) -> (b, n, g, d) -> (b, n, c)


def normed_heads(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    mixing: Float[Tensor, "g g"],
    offset: Float[Tensor, " g"] | None,
) -> Float[Tensor, "b n c"]:
    """InstanceNorm(softmax(mixing Q Kᵀ + offset)) V, the heads concatenated; the scale is in the query already."""
    heads: Tensor = (kernel_for("normed_heads") or normed_heads_plain)(query, key, value, mixing, offset)
    return heads


def normed_heads_plain(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    mixing: Float[Tensor, "g g"],
    offset: Float[Tensor, " g"] | None,
) -> Float[Tensor, "b n c"]:
    """``normed_heads`` in PyTorch's operations."""
    heads = normed_plane(mix(query @ key.mT, mixing, offset), value)
    return heads.transpose(1, 2).flatten(2)  # (b, g, n, d) -> (b, n, g, d) -> (b, n, c)


def normed_plane(scores: Float[Tensor, "b g n m"], value: Float[Tensor, "b g m d"]) -> Float[Tensor, "b g n d"]:
    """InstanceNorm(softmax(scores)) V.

    Softmax and statistics are at least float32. The instance norm is written as a layer norm over the plane, which
    is the same without affine, knows no smallest size, and on a CPU takes a fifth of the time of its arithmetic.
    The rows of the plane sum to zero (softmax: to 1, less m means of 1 / m), so the values' mean over the keys
    counts for nothing; without it the rounding of a fresh model's float32 logits is 15 to 30 times smaller.
    """
    plane = softmax(scores)
    plane = F.layer_norm(plane, plane.shape[2:], eps=EPS).to(value.dtype)
    return plane @ (value - value.mean(dim=2, keepdim=True))


def pad_keys(tokens: Float[Tensor, "... m c"]) -> Float[Tensor, "... l c"]:
    """Tokens, padded with zeros to a multiple of ``KEY_MULTIPLE``."""
    return F.pad(tokens, (0, 0, 0, -tokens.shape[-2] % KEY_MULTIPLE))


def normed_padded(
    scores: Float[Tensor, "b g n l"],
    value: Float[Tensor, "b g m d"],
    offset: Float[Tensor, "#b #g 1 m"] | None = None,
) -> Float[Tensor, "b g n d"]:
    """``normed_plane`` of scores whose keys were padded (``pad_keys``), for compilers.

    ``offset``: of each of the m real keys, added to its scores.

    The mean of the plane is 1 / m, and its deviation is one number for each head: the former is taken from the plane,
    whose bf16 has no room for both, the latter is put on the few values.
    """
    m, (n, lanes) = value.shape[2], scores.shape[2:]
    known = value.new_zeros(m) if offset is None else offset
    plane = softmax(scores + F.pad(known, (0, lanes - m), value=MASKED))
    plane = plane - F.pad(value.new_ones(m), (0, lanes - m)) / m
    square = plane.square().sum(dim=(2, 3), keepdim=True) / (n * m)
    value = (value - value.mean(dim=2, keepdim=True)) * torch.rsqrt(square + EPS).to(value.dtype)
    return plane.to(value.dtype) @ pad_keys(value)
