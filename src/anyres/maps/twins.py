"""Slow twins of the families' attentions: from what a module was given they compute its answer again, in the open.

The models run fused kernels that never store an attention weight. A twin is called with a module and the inputs that a
hook saw, so the model's own numbers stay as they are; its output equals the module's to rounding (tests/maps).
Each takes ``queries``: only the first so many are answered (None: all), which spares the square of the tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyres.models import cait, patchconvnet, resformer, rest, restv2
from anyres.ops.attention import SelfAttention
from anyres.ops.mixed_heads import mix, normed_plane, softmax
from anyres.ops.patch import Grid


class Twin(NamedTuple):
    """One attention module's answer, taken apart."""

    weights: Float[Tensor, "b g q m"]
    """Of each head, in float32 or more: of q queries to m keys, each row a softmax that sums to one."""
    attended: Float[Tensor, "b q c"]
    """The weighted values, heads side by side."""
    added: Float[Tensor, "b q c"] | None
    """What the family adds to them before the projection; None: nothing."""
    output: Float[Tensor, "b q c"]
    """What the module gives."""
    reduction: int = 1
    """By how much the grid of the keys is shrunk on each side."""


def weigh(query: Float[Tensor, "b g q d"], key: Float[Tensor, "b g m d"]) -> Float[Tensor, "b g q m"]:
    """softmax(Q Kᵀ / sqrt(d))."""
    return softmax(query * query.shape[-1] ** -0.5 @ key.mT)


def side_by_side(heads: Float[Tensor, "b g q d"]) -> Float[Tensor, "b q c"]:
    """Heads concatenated: channel = head * d + j."""
    return heads.transpose(1, 2).flatten(2)


def three(qkv: Float[Tensor, "b t c3"], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """One linear layer's output as queries, keys and values, each (b, g, t, d)."""
    parts = qkv.reshape(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)  # (b, t, 3c) -> (3, b, g, t, d)
    query, key, value = parts.unbind(0)
    return query, key, value


def self_attention(module: SelfAttention, x: Float[Tensor, "b t c"], *, queries: int | None = None) -> Twin:
    """Of DeiT, DeiT III, Three Things and DINO."""
    query, key, value = three(module.qkv(x), module.heads)
    weights = weigh(query[:, :, :queries], key)
    attended = side_by_side(weights.to(value.dtype) @ value)
    return Twin(weights, attended, None, module.proj(attended))


def local_attention(
    module: resformer.Attention, x: Float[Tensor, "b t c"], grid: Grid, *, queries: int | None = None
) -> Twin:
    """Of ResFormer: ``added`` is its local position term, nothing for the class token."""
    query, key, value = three(module.qkv(x), module.heads)
    weights = weigh(query[:, :, :queries], key)
    attended = side_by_side(weights.to(value.dtype) @ value)
    added = F.pad(module.local(value[:, :, 1:], grid), (0, 0, 1, 0))[:, :queries]
    return Twin(weights, attended, added, module.proj(attended + added))


def class_attention(module: cait.ClassAttention, x: Float[Tensor, "b t c"], *, queries: int | None = None) -> Twin:
    """Of CaiT's last blocks: one query, the class token."""
    del queries  # there is one
    query, key, value = (
        part.unflatten(2, (module.heads, -1)).transpose(1, 2)  # (b, t, c) -> (b, t, g, d) -> (b, g, t, d)
        for part in (module.q(x[:, :1]), module.k(x), module.v(x))
    )
    weights = weigh(query, key)
    attended = side_by_side(weights.to(value.dtype) @ value)
    return Twin(weights, attended, None, module.proj(attended))


def pooling(
    module: patchconvnet.Pooling,
    classes: Float[Tensor, "1 k c"],
    patches: Float[Tensor, "b n c"],
    *,
    queries: int | None = None,
) -> Twin:
    """Of PatchConvNet: one head; a query for each class token, of the multi-token kind one for each class."""
    seen = module.seen(classes, patches)
    query = (module.q(classes) * classes.shape[-1] ** -0.5)[:, :queries]
    weights = softmax(query @ module.k(seen).mT)  # (b, k, m)
    attended = weights.to(seen.dtype) @ module.v(seen)
    return Twin(weights[:, None], attended, None, module.proj(attended))


def emsa(module: rest.Attention, x: Float[Tensor, "b n c"], grid: Grid, *, queries: int | None = None) -> Twin:
    """Of ResT v1. ``weights`` are those before the instance norm, after which no row sums to one; it needs them all,
    so ``queries`` shortens what is returned alone."""
    keys, values = module.kv(module.shrink(x, grid)).chunk(2, dim=2)  # each (b, m, c)
    query, key, value = (module.split(part) for part in (module.q(x), keys, values))
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    if module.heads > 1:
        mixing = module.transform_conv
        scores = mix(scores, mixing.weight.flatten(1), mixing.bias)
        heads = normed_plane(scores, value)
        weights = softmax(scores)
    else:
        weights = softmax(scores)
        heads = weights.to(value.dtype) @ value
    attended = side_by_side(heads)[:, :queries]
    return Twin(weights[:, :, :queries], attended, None, module.proj(attended), module.reduction)


def emsa_plus(module: restv2.Attention, x: Float[Tensor, "b n c"], grid: Grid, *, queries: int | None = None) -> Twin:
    """Of ResT v2: ``added`` are its values upsampled, after their norm."""
    small, small_grid = module.shrink(x, grid)
    keys, values = module.kv(small).chunk(2, dim=2)  # each (b, m, c)
    query, key, value = (module.split(part) for part in (module.q(x[:, :queries]), keys, values))
    weights = weigh(query, key)
    attended = side_by_side(weights.to(value.dtype) @ value)
    added = module.up_norm(module.upsample(values, small_grid, grid))[:, :queries]
    return Twin(weights, attended, added, module.proj(attended + added), module.reduction)
