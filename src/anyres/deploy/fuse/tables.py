"""Tensors that depend on weights and the grid alone: computed once per grid and cached, or baked in as constants."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError
from anyres.deploy.fuse.tracing import BUILDING
from anyres.models.contract import Backbone
from anyres.ops import fold
from anyres.ops.patch import Grid

KEPT_GRIDS = 8
"""Number of grids whose tensors are kept; a further one replaces the oldest."""


_KEEPING = Lock()


class GridCache(nn.Module):
    """A tensor that depends on weights and the grid alone: computed once per grid, dtype and device, and cached.

    While a program is traced it is computed every time, unless it was baked (``bake``), as a traced grid may be free.
    ``table`` is the parameter it is made of; ``load_state_dict`` empties the cache, a change in place does not.
    """

    table: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[tuple[Grid, torch.dtype, torch.device], Tensor] = {}
        self.baked_grid: Grid | None = None
        self.register_buffer("constant", None, persistent=False)
        self.register_load_state_dict_post_hook(lambda *_: self.made.clear())  # type: ignore[no-untyped-call]

    def make(self, grid: Grid) -> Tensor:
        """The tensor for this grid."""
        raise NotImplementedError

    def forward(self, grid: Grid) -> Tensor:
        if self.baked_grid is not None:
            return self.baked(grid)
        if torch.compiler.is_compiling():
            return self.make(grid)
        key = (grid, self.table.dtype, self.table.device)
        made = self.made.get(key)
        if made is None:
            made = self.make(grid)
            with _KEEPING:  # a new dictionary, as another thread may be copying the model
                newest = list(self.made.items())[1 - KEPT_GRIDS :]
                self.made = {**dict(newest), key: made}
        return made

    def baked(self, grid: Grid) -> Tensor:
        """The constant tensor. Raises UserError for another grid."""
        if grid != self.baked_grid:
            raise UserError(f"this model was folded for {self.baked_grid} tokens and got {grid}: fuse it without size")
        return self.constant

    def bake(self) -> None:
        """Turn the newest cached tensor into a constant, for its grid only."""
        (self.baked_grid, _, _), self.constant = next(reversed(self.made.items()))
        self.made.clear()


class Positions(GridCache):
    """A position table, (1, n, c), resampled from the trained grid to the requested one."""

    def __init__(self, table: Tensor, source_grid: Grid, resample: Callable[[Tensor, Grid, Grid], Tensor]) -> None:
        super().__init__()
        self.table = fold.constant(table, table)
        self.source_grid = source_grid
        self.resample = resample

    def make(self, grid: Grid) -> Tensor:
        return self.resample(self.table, self.source_grid, grid)


def bake(folded: nn.Module, image: Float[Tensor, "b k h w"]) -> None:
    """Turn every tensor that depends on the grid alone into a constant, for the size of ``image``."""
    if isinstance(folded, Backbone):  # one without a folded form
        folded.fix_size(image.shape[2], image.shape[3])
    tables = [module for module in folded.modules() if isinstance(module, GridCache)]
    if not tables:
        return
    with BUILDING:  # while another thread traces, nothing would be cached
        for table in tables:
            table.made.clear()
        with torch.no_grad():
            folded(image)
        for table in tables:
            table.bake()
