"""A residual branch joined to its trunk, and the norm that the next branch begins with. The plain form."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


def add_norm(
    x: Float[Tensor, "b n c"],
    y: Float[Tensor, "b n c"],
    gamma: Float[Tensor, " c"] | None,
    drop: Callable[[Tensor], Tensor] | None,
    norm: nn.LayerNorm,
) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"]]:
    """x + drop(gamma * y), and ``norm`` of it. ``gamma``: LayerScale; ``drop``: stochastic depth, a factor per image.

    ``anyres.ops.triton`` has a kernel of the same name and arguments.
    """
    y = y if gamma is None else gamma * y
    x = x + (y if drop is None else drop(y))
    return x, norm(x)
