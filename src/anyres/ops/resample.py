"""Carry what was learnt on one grid of tokens to another grid: position tables, mixing matrices, mixing biases.

Every function here is one idea: a bicubic resampling along one axis is a matrix (new, old) whose rows sum to one,
and on a grid it acts on rows and on columns separately. The matrices are plain tensor arithmetic, so the result is
differentiable and exportable; and a grid carried to itself comes back untouched. (An exported program cannot branch on
its free sizes, so there the matrices are always applied: for equal grids they are exact identities.)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyres.config import UserError
from anyres.ops.patch import Grid


def axis_matrix(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """The bicubic resampling of ``old`` samples to ``new`` ones as a matrix; every row sums to one.

    Pixel centres are aligned, the kernel is Keys' cubic (a = -1/2) and is stretched when there are fewer new samples
    than old (antialiasing), and weights that fall outside are shared among those inside: the rule of PIL, of
    ``F.interpolate(mode="bicubic", antialias=True)`` and of timm's position tables. Device as ``like``; at least
    float32.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    scale = old / new
    centres = (torch.arange(new, device=like.device, dtype=dtype) + 0.5) * scale - 0.5
    samples = torch.arange(old, device=like.device, dtype=dtype)
    stretch: Any = torch.sym_max(scale, 1.0)  # scale may be symbolic, in an exporter
    distance: Tensor = (samples[None, :] - centres[:, None]).abs() / stretch
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def resample_table(table: Float[Tensor, "b n c"], old: Grid, new: Grid) -> Float[Tensor, "b m c"]:
    """A table of one vector per token, carried from the ``old`` grid to the ``new`` one; itself if they are equal.

    For position tables (without their class token) and other per-token vectors. Raises UserError if n is not the
    old grid's number of tokens. Dtype and device are kept; the arithmetic is at least float32.
    """
    if not torch.compiler.is_exporting() and old == new:
        return table
    _check(table.shape[1], old, "table")
    down, across = axis_matrix(old[0], new[0], table), axis_matrix(old[1], new[1], table)
    maps = table.to(down.dtype).reshape(table.shape[0], *old, -1)  # (b, n, c) -> (b, rows, columns, c)
    maps = torch.einsum("yh,xw,bhwc->byxc", down, across, maps)
    return maps.flatten(1, 2).to(table.dtype)  # (b, rows, columns, c) -> (b, m, c)


def resample_mixing(weight: Float[Tensor, "n n"], old: Grid, new: Grid) -> Float[Tensor, "m m"]:
    """A token-mixing matrix, carried from the ``old`` grid to the ``new`` one at both ends; itself if they are equal.

    Seen as (h, w, h, w), the matrix M maps an image of tokens to an image of tokens. The carried matrix is

        M' = D M U,    U: new grid -> old grid,    D: old grid -> new grid,

    both bicubic: tokens are brought to the trained grid, mixed there, and brought back. As the rows of U sum to one,
    M' 1 = D (M 1): a constant image keeps its response, exactly, whatever the row sums are (no division by them).
    Differentiable in ``weight``. Raises UserError if n is not the old grid's number of tokens.
    """
    if not torch.compiler.is_exporting() and old == new:
        return weight
    _check(weight.shape[0], old, "mixing matrix")
    output_rows, output_columns = axis_matrix(old[0], new[0], weight), axis_matrix(old[1], new[1], weight)
    input_rows, input_columns = axis_matrix(new[0], old[0], weight), axis_matrix(new[1], old[1], weight)
    ends = weight.to(output_rows.dtype).reshape(*old, *old)  # (n, n) -> (h, w, h, w)
    ends = torch.einsum("hwab,ay,bx->hwyx", ends, input_rows, input_columns)
    ends = torch.einsum("ph,qw,hwyx->pqyx", output_rows, output_columns, ends)
    return ends.reshape(new[0] * new[1], -1).to(weight.dtype)  # (h', w', h', w') -> (m, m)


def resample_bias(bias: Float[Tensor, " n"], old: Grid, new: Grid) -> Float[Tensor, " m"]:
    """A mixing bias, one number per output token, carried like the matrix's output end; itself if grids are equal."""
    return resample_table(bias[None, :, None], old, new)[0, :, 0]


def _check(tokens: int, grid: Grid, what: str) -> None:
    if tokens != grid[0] * grid[1]:
        raise UserError(f"a {what} of {tokens} tokens does not lie on a grid of {grid[0]}x{grid[1]}")
