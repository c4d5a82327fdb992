"""What the deploy forms of several families are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError
from anyres.deploy.fuse.tracing import is_tracing_for_cpu
from anyres.models.contract import Backbone
from anyres.models.deit3 import HMLPStem
from anyres.ops import attention, fold
from anyres.ops.mlp import Mlp
from anyres.ops.patch import Grid, PatchEmbed, pad_to_multiple
from anyres.ops.residual import add_norm


class Folded(nn.Module):
    """A deploy form: image (b, k, h, w) -> logits (b, num_classes), for evaluation alone."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.num_classes = model.num_classes
        self.pretrained_cfg = dict(model.pretrained_cfg)

    def train(self, mode: bool = True) -> Folded:
        """Raises UserError for ``mode`` True: norms and scales are gone, so it cannot be trained."""
        if mode:
            raise UserError("a folded model is for evaluation: train the model that it was made of, and fuse it again")
        super().train(False)
        return self


def to_tokens(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """As ``anyres.ops.patch.to_tokens``, by a permutation of four axes, which OpenVINO does by not moving anything."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def to_maps(tokens: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b c h w"]:
    """As ``anyres.ops.patch.to_maps``, by a permutation of four axes."""
    return tokens.reshape(tokens.shape[0], *grid, -1).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Image -> patch tokens and their grid, the sides padded to the patch: convolutions, their norms inside them.

    ``center``: each token less the mean over its channels, for ``CenteredNorm``.
    """

    def __init__(self, own: PatchEmbed | HMLPStem, *, center: bool = False) -> None:
        super().__init__()
        if isinstance(own, PatchEmbed):
            self.patch_size = own.patch_size
            self.proj = nn.Sequential(fold.convolution(own.proj, center=center))
        else:
            self.patch_size = 16
            layers: list[Any] = list(own.proj)
            first, second = (fold.convolution(layers[i], layers[i + 1]) for i in (0, 3))
            third = fold.convolution(layers[6], layers[7], center=center)
            self.proj = nn.Sequential(first, nn.GELU(), second, nn.GELU(), third)

    def forward(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        maps = self.proj(pad_to_multiple(x, self.patch_size))
        return to_tokens(maps), (maps.shape[2], maps.shape[3])


def attend(
    query: Float[Tensor, "b g n d"],
    key: Float[Tensor, "b g m d"],
    value: Float[Tensor, "b g m d"],
    offset: Float[Tensor, "b g 1 m"] | None = None,
) -> Float[Tensor, "b n c"]:
    """softmax(Q Kᵀ + offset) V for each head, the heads concatenated; the scale is in the query already."""
    return attention.attend(query, key, value, 1.0, offset)


class QueryOnlyAttention(nn.Module):
    """Attention of a few query tokens (the class tokens) over all tokens; keys and values are never computed.

    A head's scores q Wₖ yᵀ are products of the tokens y with the s vectors q Wₖ, and its output Wᵥ (weights y) needs
    Wᵥ for s tokens only. A key's bias is the same for every token and cancels in the softmax; a value's bias passes
    through weights that sum to one, into the projection's bias.
    """

    def __init__(self, heads: int, query: nn.Linear, key: nn.Linear, value: nn.Linear, proj: nn.Linear) -> None:
        super().__init__()
        self.heads = heads
        like = query.weight
        self.query = query
        self.key = fold.constant(key.weight.reshape(heads, -1, like.shape[1]), like)  # (g, d, c)
        self.value = fold.constant(value.weight.reshape(heads, -1, like.shape[1]).mT, like)  # (g, c, d)
        bias = fold.to_float64(proj.weight) @ fold.bias_of(value) + fold.bias_of(proj)
        self.proj = fold.linear(proj.weight, bias, like)

    def forward(self, queries: Float[Tensor, "b s c"], tokens: Float[Tensor, "b t c"]) -> Float[Tensor, "b s c"]:
        """Normalized query tokens, and the normalized tokens they attend to."""
        b, s, c = queries.shape
        query = self.query(queries).reshape(b * s, self.heads, -1).transpose(0, 1)  # -> (g, b*s, d)
        query = (query @ self.key).transpose(0, 1).reshape(b, s * self.heads, c)
        mixed = (query @ tokens.mT).softmax(-1) @ tokens  # (b, s*g, t) -> (b, s*g, c)
        mixed = mixed.reshape(b * s, self.heads, c).transpose(0, 1) @ self.value  # -> (g, b*s, c) -> (g, b*s, d)
        out: Tensor = self.proj(mixed.transpose(0, 1).reshape(b, s, -1))
        return out


class CenteredNorm(nn.LayerNorm):
    """The layer norm, without affine part, of a trunk whose tokens have mean zero over their channels.

    Where every reader of a trunk normalizes it, that mean never matters, and is removed from all that is added to it.
    The norm is then a root-mean-square norm, and is written as one in a program for a CPU, a pass fewer (OpenVINO bf16:
    0.6 of the time).
    """

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, norm.eps, elementwise_affine=False)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        if is_tracing_for_cpu():
            return F.rms_norm(x, self.normalized_shape, eps=self.eps)
        return super().forward(x)


class MLP(nn.Module):
    """linear, GELU, linear."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        x = self.second(F.gelu(self.first(x)))
        return x


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, norm: nn.LayerNorm, attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.attn = attn
        self.mlp = mlp

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        x, normed = add_norm(x, self.attn(self.norm(x)), None, None, self.norm)
        x = x + self.mlp(normed)
        return x


class ClassTokenBlock(nn.Module):
    """A block for the first ``specials`` tokens alone, as no other is read after it."""

    def __init__(self, norm: nn.LayerNorm, attn: QueryOnlyAttention, mlp: nn.Module, specials: int) -> None:
        super().__init__()
        self.norm = norm
        self.attn = attn
        self.mlp = mlp
        self.specials = specials

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b s c"]:
        normed = self.norm(x)
        x = x[:, : self.specials] + self.attn(normed[:, : self.specials], normed)
        x = x + self.mlp(self.norm(x))
        return x


def plain_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The norm without its affine part."""
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def after_norm(layer: nn.Linear, norm: nn.LayerNorm) -> nn.Linear:
    """The layer for tokens that ``plain_norm`` has normalised."""
    return fold.fold_input_affine(layer, norm.weight, norm.bias)


def query_key_value(qkv: nn.Linear, norm: nn.LayerNorm, heads: int) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The three parts of a packed layer, for normalised tokens, the scale d^-1/2 in the first."""
    layer = after_norm(qkv, norm)
    parts = zip(layer.weight.chunk(3), layer.bias.chunk(3), strict=True)
    query, key, value = (fold.linear(weight, bias, layer.weight) for weight, bias in parts)
    return fold.scale(query, (query.out_features // heads) ** -0.5), key, value


def mlp(branches: Sequence[tuple[nn.LayerNorm, Mlp, Tensor | None]], *, center: bool = False) -> MLP:
    """Normalised x -> the sum of gamma * Mlp(norm's affine part of x) over the branches (norm, Mlp, gamma).

    ``center``: less its mean over the channels, for ``CenteredNorm``.
    """
    first = fold.concat_outputs([after_norm(own.fc1, norm) for norm, own, _ in branches])
    second = fold.sum_outputs([fold.fold_output_scale(own.fc2, gamma) for _, own, gamma in branches])
    return MLP(first, fold.center_output(second) if center else second)


def classifier(norm: nn.LayerNorm, *heads: nn.Module) -> nn.Sequential:
    """Tokens (b, s, c), one for each head -> the final norm -> the mean of the heads' logits (b, k).

    Without classes (heads that are no linear layers) the normalised tokens end to end, (b, s * c).
    """
    linears = [head for head in heads if isinstance(head, nn.Linear)]
    if linears:
        head = fold.scale(fold.sum_outputs([after_norm(linear, norm) for linear in linears]), 1 / len(linears))
        return nn.Sequential(plain_norm(norm), nn.Flatten(), head)
    return nn.Sequential(fold.layer_norm(norm), nn.Flatten())


class MeanOfTokens(nn.Module):
    """(b, n, c) -> (b, c)."""

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b c"]:
        return x.mean(dim=1)


def mean_classifier(norm: nn.LayerNorm, head: nn.Module) -> nn.Sequential:
    """Tokens (b, n, c) -> the final norm -> their mean -> logits (b, k); without classes the mean itself."""
    if isinstance(head, nn.Linear):
        return nn.Sequential(plain_norm(norm), MeanOfTokens(), after_norm(head, norm))
    return nn.Sequential(fold.layer_norm(norm), MeanOfTokens())
