"""Tensors that depend on weights and the grid alone: made once, and remembered or held."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.contract import Backbone
from anyres.ops import fold
from anyres.ops.patch import Grid

KEPT_GRIDS = 8
"""As many grids are remembered; of a ninth, the oldest is forgotten."""


class PerGrid(nn.Module):
    """A tensor that depends on weights and the grid alone: made once per grid, dtype and device, and remembered.

    In a program that is traced it is computed, unless it was ``pin``ned, since a traced grid may be free. ``table`` is
    the parameter it is made of; ``load_state_dict`` forgets what was made, a change in place is not noticed.
    """

    table: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[tuple[Grid, torch.dtype, torch.device], Tensor] = {}
        self.pinned: Grid | None = None
        self.register_buffer("constant", None, persistent=False)
        self.register_load_state_dict_post_hook(lambda *_: self.made.clear())  # type: ignore[no-untyped-call]

    def make(self, grid: Grid) -> Tensor:
        """The tensor for this grid."""
        raise NotImplementedError

    def forward(self, grid: Grid) -> Tensor:
        if self.pinned is not None:
            return self.held(grid)
        if torch.compiler.is_compiling():
            return self.make(grid)
        key = (grid, self.table.dtype, self.table.device)
        if key not in self.made:
            if len(self.made) == KEPT_GRIDS:
                del self.made[next(iter(self.made))]
            self.made[key] = self.make(grid)
        return self.made[key]

    def held(self, grid: Grid) -> Tensor:
        """The pinned tensor. Raises UserError for another grid."""
        if grid != self.pinned:
            raise UserError(f"this model was folded for {self.pinned} tokens and got {grid}: fuse it without size")
        return self.constant

    def pin(self) -> None:
        """Makes the last remembered tensor a constant, and its grid the only one."""
        (self.pinned, _, _), self.constant = next(reversed(self.made.items()))
        self.made.clear()


class Positions(PerGrid):
    """A position table, (1, n, c), carried from its own grid to the one that is asked for."""

    def __init__(self, table: Tensor, home: Grid, resample: Callable[[Tensor, Grid, Grid], Tensor]) -> None:
        super().__init__()
        self.table = fold.constant(table, table)
        self.home = home
        self.resample = resample

    def make(self, grid: Grid) -> Tensor:
        return self.resample(self.table, self.home, grid)


def pin(folded: nn.Module, image: Float[Tensor, "b k h w"]) -> None:
    """Makes every tensor that depends on the grid alone a constant, for the size of ``image``."""
    if isinstance(folded, Backbone):  # one without a folded form
        folded.fix_size(image.shape[2], image.shape[3])
    tables = [module for module in folded.modules() if isinstance(module, PerGrid)]
    for table in tables:
        table.made.clear()
    with torch.no_grad():
        folded(image)
    for table in tables:
        table.pin()
