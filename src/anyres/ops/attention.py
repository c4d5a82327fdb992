"""Softmax attention, as ResTv2 and ResFormer share it."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attend(
    query: Float[Tensor, "b g n d"], key: Float[Tensor, "b g m d"], value: Float[Tensor, "b g m d"]
) -> Float[Tensor, "b n c"]:
    """softmax(Q Kᵀ / sqrt(d)) V for each of g heads, the heads concatenated: c = g * d, channel = head * d + j.

    n queries over m keys, any floating dtype (all three the same). PyTorch picks the kernel; none of them stores the
    n x m matrix where a fused one fits.
    """
    heads = F.scaled_dot_product_attention(query, key, value)
    return heads.transpose(1, 2).flatten(2)  # (b, g, n, d) -> (b, n, g, d) -> (b, n, c)
