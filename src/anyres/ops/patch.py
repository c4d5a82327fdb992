"""Patch projection: an image of any height and width becomes tokens and the grid they lie on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.ops.convolution import StridedConv2d

Grid = tuple[int, int]
"""Rows and columns of tokens."""


def pad_to_multiple(image: Float[Tensor, "b c h w"], multiple: int) -> Float[Tensor, "b c hp wp"]:
    """Zeros on the right and at the bottom until both sides are multiples of ``multiple``; itself if they are.

    Zero is the mean colour of a normalised image. Nothing is cut, so no pixel of the border is lost.
    """
    height, width = image.shape[-2:]
    # With //, as torch.compile (2.15) has no code for -height % multiple of a free height.
    rows, columns = (height + multiple - 1) // multiple, (width + multiple - 1) // multiple
    bottom, right = rows * multiple - height, columns * multiple - width
    # An exported program has no branch on its free sizes, and every branch is one more compilation: there an image is
    # padded always, by nothing where nothing is missing.
    return F.pad(image, (0, right, 0, bottom)) if torch.compiler.is_compiling() or bottom or right else image


def crop(maps: Float[Tensor, "b c hp wp"], grid: Grid) -> Float[Tensor, "b c h w"]:
    """The first rows and columns of a map that may be larger than ``grid``."""
    if not torch.compiler.is_exporting():
        return maps[:, :, : grid[0], : grid[1]]
    # A slice's strides tell whether anything was cut, and the exporter would take the traced answer for the only one.
    rows, columns = (torch.arange(side, device=maps.device) for side in grid)
    return maps.index_select(2, rows).index_select(3, columns)


def to_tokens(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """Map -> tokens in row-major order."""
    return maps.flatten(2).transpose(1, 2)


def to_maps(tokens: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b c h w"]:
    """Tokens in row-major order -> map."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def grid_of(img_size: int | tuple[int, int], patch_size: int) -> Grid:
    """Rows and columns of tokens of an image with side ``img_size``, or (height, width); a cut patch counts as one."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    return -(-height // patch_size), -(-width // patch_size)


class PatchEmbed(nn.Module):
    """Conv2d(in_chans, dim, kernel = stride = patch_size) with bias; tokens in row-major order.

    A side that is no multiple of the patch is padded (``pad_to_multiple``), so h x w pixels give
    ceil(h / patch) x ceil(w / patch) tokens. Weights keep PyTorch's default initialisation.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = StridedConv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size, padding=0)

    def forward(self, image: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        """Returns tokens (b, n, c), n = rows * columns, and the grid (rows, columns)."""
        maps = self.proj(pad_to_multiple(image, self.patch_size))
        rows, columns = maps.shape[-2:]
        return to_tokens(maps), (rows, columns)
