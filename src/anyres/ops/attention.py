"""Softmax attention, as the families share it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.ops.kernels import kernel_for

MOST_KEYS = 1024  # beyond so many keys the score matrix costs more memory than the explicit product saves time


def attend(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    scale: float | None = None,
    offset: Float[Tensor, "b g 1 m"] | None = None,
) -> Float[Tensor, "b n c"]:
    """softmax(scale Q Kᵀ + offset) V for each of g heads, the heads concatenated: c = g * d, channel = head * d + j.

    n queries over m keys, any floating dtype (all the same); ``scale``: d^-1/2, or what is given. PyTorch picks
    the kernel, except for bf16 on a CPU, where the two matrix products written out take a fifth to a half of its fused
    kernel's time (benchmarks/cpu_kernels.py).
    """
    explicit = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= MOST_KEYS
    if explicit:
        heads = explicit_attention(query, key, value, scale, offset)
    else:
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=offset, scale=scale)
    return heads.transpose(1, 2).flatten(2)  # (b, g, n, d) -> (b, n, g, d) -> (b, n, c)


def explicit_attention(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    scale: float | None = None,
    offset: Float[Tensor, "b g 1 m"] | None = None,
) -> Float[Tensor, "b g n d"]:
    """The same with the score matrix (b, g, n, m) stored; its softmax is taken in float32."""
    scaled = query if scale == 1 else query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scaled @ key.transpose(-2, -1)
    if offset is not None:
        scores = scores + offset
    mixed: Tensor = scores.float().softmax(-1).to(value.dtype) @ value
    return mixed


def attend_plus(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    added: Float[Tensor, "b n c"],
    norm: nn.LayerNorm,
    scale: float | None = None,
) -> Float[Tensor, "b n c"]:
    """``attend`` plus the ``norm`` of ``added``.

    Calls a kernel of the same arguments where one is in use (``anyres.ops.kernels``).
    """
    summed: Tensor = (kernel_for("attend_plus") or attend_plus_plain)(query, key, value, added, norm, scale)
    return summed


def attend_plus_plain(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    added: Float[Tensor, "b n c"],
    norm: nn.LayerNorm,
    scale: float | None = None,
) -> Float[Tensor, "b n c"]:
    """``attend_plus`` in PyTorch's operations."""
    whole: Tensor = attend(query, key, value, scale) + norm(added)
    return whole


class SelfAttention(nn.Module):
    """Multi-head self-attention: one linear layer to [q, k, v] (each g heads of d channels), softmax, projection.

    Keys ``qkv.*`` and ``proj.*``, both with bias; the scale is d^-1/2.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # (b, n, 3c) -> (b, n, 3, g, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, n, d)
        x = self.proj(attend(query, key, value))
        return x
