"""Attention in windows, so that a plain ViT can see large images: cost grows with the image, not with its square.

ViTDet (arXiv:2203.16527, section 3) puts most blocks' attention into windows and leaves every third block global. Here
a window at the right or at the bottom has the tokens that are left, so no padding takes part in attention. What a block
does beside attention on its grid, as ResFormer's local position, it does within each window. Every window sees the
special tokens; afterwards they are the windows' mean, weighted by area. Stochastic depth is drawn for each window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from anyres.models.contract import Backbone
from anyres.ops.patch import Grid, to_maps

Run = Callable[[Tensor, Grid], Tensor]
"""A block: tokens (b, t, c), special ones first, and their grid -> tokens."""


def windowed_maps(
    trunk: Backbone, x: Float[Tensor, "b k h w"], indices: Sequence[int], window: int, global_every: int
) -> list[Float[Tensor, "b c rows columns"]]:
    """The normalised maps after the blocks ``indices``, with attention in windows of ``window`` tokens a side but for
    every ``global_every``-th block."""
    vit = cast(Any, trunk)
    takes_grid = trunk.traits.windows == "grid"
    tokens, grid = vit.embed(x)
    found = []
    for i, block in enumerate(vit.blocks):

        def run(tokens: Tensor, grid: Grid, block: Any = block) -> Tensor:
            out: Tensor = vit.run_block(block, tokens, grid) if takes_grid else vit.run_block(block, tokens)
            return out

        tokens = run(tokens, grid) if (i + 1) % global_every == 0 else in_windows(run, tokens, grid, window)
        if i in indices:
            special = tokens.shape[1] - grid[0] * grid[1]
            found.append(to_maps(vit.norm(tokens)[:, special:], grid))
    return found


def in_windows(run: Run, tokens: Float[Tensor, "b t c"], grid: Grid, window: int) -> Float[Tensor, "b t c"]:
    """``run`` on each window of the grid by itself; windows of one size at once."""
    count = tokens.shape[1] - grid[0] * grid[1]
    special, maps = tokens[:, :count], tokens[:, count:].reshape(tokens.shape[0], *grid, -1)  # (b, s, c), (b, h, w, c)
    seen = torch.zeros_like(special)
    rows = []
    for band in _bands(maps, 1, grid[0], window):
        cells = []
        for part in _bands(band, 2, grid[1], window):
            cell, attended = _run_equal(run, special, part, window)
            cells.append(cell)
            seen = seen + attended
        rows.append(torch.cat(cells, dim=2))
    patches = torch.cat(rows, dim=1).flatten(1, 2)  # (b, h, w, c) -> (b, n, c)
    return torch.cat((seen / (grid[0] * grid[1]), patches), dim=1)


def _bands(maps: Tensor, axis: int, length: int, window: int) -> list[Tensor]:
    """What whole windows cover along an axis, and what is left."""
    whole = length // window * window
    return [part for part in torch.split(maps, [whole, length - whole], dim=axis) if part.shape[axis]]


def _run_equal(run: Run, special: Tensor, part: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """A part (b, h, w, c) of equal windows, and the sum over windows of special tokens by window's tokens."""
    b, height, width, c = part.shape
    rows, columns = min(window, height), min(window, width)
    down, across, count = height // rows, width // columns, special.shape[1]
    cut = part.reshape(b, down, rows, across, columns, c).transpose(2, 3)  # (b, down, across, rows, columns, c)
    patches = cut.reshape(b * down * across, rows * columns, c)
    repeated = special[:, None].expand(-1, down * across, -1, -1).flatten(0, 1)
    out = run(torch.cat((repeated, patches), dim=1), (rows, columns))
    attended = out[:, :count].reshape(b, down * across, count, c).sum(1) * (rows * columns)
    back = out[:, count:].reshape(b, down, across, rows, columns, c).transpose(2, 3)
    return back.reshape(b, height, width, c), attended
