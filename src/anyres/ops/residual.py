"""A residual branch joined to its trunk, with the norm that the next branch begins with, or for some images alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from anyres.ops.kernels import kernel_for

Branch = Callable[[Tensor], Tensor]


def add_norm(
    x: Float[Tensor, "b n c"],
    y: Float[Tensor, "b n c"],
    gamma: Float[Tensor, " c"] | None,
    drop: Callable[[Tensor], Tensor] | None,
    norm: nn.LayerNorm,
) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"]]:
    """x + drop(gamma * y), and ``norm`` of it. ``gamma``: LayerScale; ``drop``: stochastic depth, a factor per image.

    Calls a kernel of the same arguments where one is in use (``anyres.ops.kernels``).
    """
    total, normed = (kernel_for("add_norm") or add_norm_plain)(x, y, gamma, drop, norm)
    return total, normed


def add_norm_plain(
    x: Float[Tensor, "b n c"],
    y: Float[Tensor, "b n c"],
    gamma: Float[Tensor, " c"] | None,
    drop: Callable[[Tensor], Tensor] | None,
    norm: nn.LayerNorm,
) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"]]:
    """``add_norm`` in PyTorch's operations."""
    y = y if gamma is None else gamma * y
    x = x + (y if drop is None else drop(y))
    return x, norm(x)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): a branch of an image is left out with probability ``drop_prob``.

    What is kept is divided by 1 - ``drop_prob``. Nothing is left out in eval mode. The same masks as timm's, by seed.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        if not (self.training and self.drop_prob):
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


def add_kept(x: Float[Tensor, "b n c"], branches: Sequence[Branch], drop: DropPath) -> Float[Tensor, "b n c"]:
    """x + drop(branch(x)) for one branch after another, each computed for the images that ``drop`` keeps alone.

    The same masks are drawn, so that values and gradients are those of ``drop`` (stochastic depth, Huang et al., ECCV
    2016) to rounding. Where none is kept one image goes through the branch and counts nothing: every parameter has its
    gradient. Which images are kept decides the shapes: on a CUDA device each branch would wait for the answer.
    """
    share = 1 - drop.drop_prob
    for branch in branches:
        mask = x.new_empty(len(x), 1, 1).bernoulli_(share)
        kept = mask.flatten().nonzero()[:, 0]
        rows, factor = (kept, 1 / share) if len(kept) else (kept.new_zeros(1), 0.0)
        x = x.index_add(0, rows, branch(x[rows]).to(x.dtype), alpha=factor)
    return x


class StochasticDepth(DropPath):
    """``DropPath`` for blocks that can compute their branches for the kept images alone (``add_kept``).

    A block does so while it trains and ``skips`` is True.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__(drop_prob)
        self.skips = False


def skip_dropped(model: nn.Module) -> int:
    """Have the blocks of ``model`` compute their branches for kept images alone while they train; how many blocks."""
    found = [each for each in model.modules() if isinstance(each, StochasticDepth) and each.drop_prob]
    for drop in found:
        drop.skips = True
    return len(found)
