"""The deploy form of ResMLP."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.deploy.fuse.folded import MLP, Folded, MeanOfTokens, Patches
from anyres.deploy.fuse.tables import GridCache
from anyres.models import resmlp
from anyres.ops import fold
from anyres.ops.patch import Grid
from anyres.ops.resample import resample_mixing, resample_table


class Matrix(GridCache):
    """A token-mixing matrix, (n, n), carried to the grid."""

    def __init__(self, own: resmlp.TokenMixing) -> None:
        super().__init__()
        self.table = fold.constant(own.weight, own.weight)
        self.source_grid = own.trained

    def make(self, grid: Grid) -> Float[Tensor, "m m"]:
        return resample_mixing(self.table, self.source_grid, grid)


class Offset(GridCache):
    """What a token mixing adds to every token and channel, (n, c), carried to the grid.

    The mixing's input has β added to every token, so its output has the matrix's row sums times β; with its own bias
    and γ that is γ (β row sum + bias). A carried matrix has the carried row sums (``anyres.ops.resample``).
    """

    def __init__(self, own: resmlp.TokenMixing, shift: Tensor, gamma: Tensor) -> None:
        super().__init__()
        sums, bias = fold.to_float64(own.weight).sum(1), fold.to_float64(own.bias)
        table = fold.to_float64(gamma) * (sums[:, None] * fold.to_float64(shift) + bias[:, None])
        self.table = fold.constant(table, own.weight)
        self.source_grid = own.trained

    def make(self, grid: Grid) -> Float[Tensor, "m c"]:
        return resample_table(self.table[None], self.source_grid, grid)[0]


class Block(nn.Module):
    """x + scale * (M x) + offset, then x + mlp(x): both affines and both γ are in them."""

    def __init__(self, own: resmlp.Block) -> None:
        super().__init__()
        self.mixing = Matrix(own.attn)
        self.scale = fold.constant(fold.to_float64(own.gamma_1) * fold.to_float64(own.norm1.alpha), own.gamma_1)
        self.offset = Offset(own.attn, own.norm1.beta, own.gamma_1)
        first = fold.fold_input_affine(own.mlp.fc1, own.norm2.alpha, own.norm2.beta)
        self.mlp = MLP(first, fold.fold_output_scale(own.mlp.fc2, own.gamma_2))

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        x = torch.addcmul(x + self.offset(grid), self.scale, self.mixing(grid) @ x)  # (n, n) x (b, n, c)
        x = x + self.mlp(x)
        return x


class FoldedResMLP(Folded):
    """Patches, blocks, the mean of the tokens. The final affine is in the classifier."""

    def __init__(self, model: resmlp.ResMLP) -> None:
        super().__init__(model)
        blocks: list[Any] = list(model.blocks)
        self.patches = Patches(model.patch_embed)
        self.blocks = nn.ModuleList(Block(block) for block in blocks)
        alpha, beta = model.norm.alpha, model.norm.beta
        if isinstance(model.head, nn.Linear):
            head = fold.fold_input_affine(model.head, alpha, beta)
        else:
            head = fold.linear(torch.diag(fold.to_float64(alpha)), fold.to_float64(beta), alpha)
        self.head = nn.Sequential(MeanOfTokens(), head)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        tokens, grid = self.patches(x)
        for block in self.blocks:
            tokens = block(tokens, grid)
        x = self.head(tokens)
        return x
