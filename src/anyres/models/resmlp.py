"""ResMLP: no attention and no convolution but the patches'; tokens are mixed by one learned matrix per block.

Touvron, Bojanowski, Caron, Cord, El-Nouby, Grave, Izacard, Joulin, Synnaeve, Verbeek, Jégou:
"ResMLP: Feedforward networks for image classification with data-efficient training", arXiv:2105.03404.
The paper's top-1 on ImageNet-1k at 224 px, parameters and MACs as the code has them:

    ==============  ==========  =======  =====  =========
    model           parameters     MACs  plain  distilled
    resmlp_12           15.4 M    3.0 G   76.6       77.8
    resmlp_24           30.0 M    6.0 G   79.4       80.8
    resmlp_36           44.7 M    8.9 G   79.7       81.0
    resmlpB_24         129.1 M  100.2 G   81.0       83.6
    resmlpB_24_p16     115.7 M   23.0 G   81.0
    ==============  ==========  =======  =====  =========

resmlpB_24 is the paper's B24/8, patches of 8 px. Its B24/16 has neither official code nor weights: resmlpB_24_p16 is
from the paper only, named by us, its ``init_scale`` that of the other. The official README gives B24/16's 116 M and
23 G for S36 by mistake.

A block (section 2) is x + γ₁ T(Aff x), T a linear layer along the patch axis, then x + γ₂ Mlp(Aff x). An affine
replaces the norms, so nothing is computed from statistics. Authors train without mixed precision.

Deviations from the official code, none of which changes a result where that code runs (the construction size):

* The (n, n) mixing matrix knows one grid, the trained one. On any other it is carried there at both ends,
  differentiably, so that a constant image keeps its response (``anyres.ops.resample``). What accuracy that keeps is for
  a measurement to say, so the first such use in evaluation warns, unless ``any_size`` says that the model was trained
  at several sizes.
* A side that is no multiple of the patch is padded with zeros on the right or at the bottom.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Traits, check_pool, take_indices, timm_cfg
from anyres.ops.head import new_head
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, PatchEmbed, grid_of, to_maps
from anyres.ops.recompute import run_block
from anyres.ops.resample import resample_bias, resample_mixing
from anyres.ops.residual import Branch, StochasticDepth, add_kept


@config
class ResMLPConfig:
    """Width and depth (paper, table 1); the MLP ratio is 4 throughout."""

    dim: int = 384
    depth: int = 12
    patch_size: int = 16
    img_size: int | tuple[int, int] = 224
    """Pixels, a side or (height, width), of the grid the mixing matrices are stored on."""
    init_scale: float = 0.1
    """Initial gamma of the residual branches; the deeper the smaller."""
    any_size: bool = False
    """Trained at several sizes: no warning when used off the stored grid."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth, the same in every block."""

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.patch_size, self.in_chans, *self.image)
        if min(sizes) < 1 or self.num_classes < 0:
            raise UserError(f"ResMLP's sizes must be positive: {self}")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path must lie in [0, 1), not {self.drop_path}")

    @property
    def image(self) -> tuple[int, int]:
        """``img_size`` as (height, width)."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> Grid:
        """Rows and columns of tokens at ``img_size``, a cut patch counted as one."""
        return grid_of(self.img_size, self.patch_size)


class Affine(nn.Module):
    """α x + β per channel, in place of a norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return self.alpha * x + self.beta


class TokenMixing(nn.Module):
    """A linear layer along the token axis, the same for every channel, carried to the grid it is asked for."""

    def __init__(self, trained: Grid) -> None:
        super().__init__()
        n = trained[0] * trained[1]
        self.trained = trained
        self.weight = nn.Parameter(torch.empty(n, n))
        self.bias = nn.Parameter(torch.empty(n))

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        weight = resample_mixing(self.weight, self.trained, grid)
        bias = resample_bias(self.bias, self.trained, grid)
        return F.linear(x.transpose(1, 2), weight, bias).transpose(1, 2)  # (b, n, c) -> (b, c, n) -> (b, n, c)


class Block(nn.Module):
    """x + DropPath(γ₁ T(Aff x)), then x + DropPath(γ₂ Mlp(Aff x)), with independent masks."""

    def __init__(self, dim: int, trained: Grid, drop_path: float) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.empty(dim))
        self.gamma_2 = nn.Parameter(torch.empty(dim))
        self.norm1 = Affine(dim)
        self.attn = TokenMixing(trained)
        self.norm2 = Affine(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        if self.drop_path.skips and self.training:
            return add_kept(x, self.branches(grid), self.drop_path)
        for branch in self.branches(grid):
            x = x + self.drop_path(branch(x))
        return x

    def branches(self, grid: Grid) -> tuple[Branch, ...]:
        return (
            lambda y: self.gamma_1 * self.attn(self.norm1(y), grid),
            lambda y: self.gamma_2 * self.mlp(self.norm2(y)),
        )


def _in_timm(model: ResMLP) -> tuple[str, dict[str, Any]] | None:
    """How timm by itself builds the model."""
    config = model.config
    known = {(16, 12, 384): "12", (16, 24, 384): "24", (16, 36, 384): "36", (8, 24, 768): "big_24"}
    name = known.get((config.patch_size, config.depth, config.dim))
    return (f"resmlp_{name}_224", {"img_size": config.img_size, "in_chans": config.in_chans}) if name else None


class ResMLP(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(several_sizes={"any_size": True}, fold="anyres.deploy.fuse.resmlp:FoldedResMLP", timm=_in_timm)

    def __init__(self, config: ResMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = config.dim
        self.grad_checkpointing = False
        self.warned = config.any_size
        self.feature_info = [
            {"num_chs": config.dim, "reduction": config.patch_size, "module": f"blocks.{i}"}
            for i in range(config.depth)
        ]
        self.pretrained_cfg = preprocessing(config)

        self.patch_embed = PatchEmbed(config.in_chans, config.dim, config.patch_size)
        self.blocks = nn.ModuleList(Block(config.dim, config.grid, config.drop_path) for _ in range(config.depth))
        self.norm = Affine(config.dim)
        self.head = nn.Linear(config.dim, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears and mixing matrices: truncated normal 0.02, biases 0. Affines: identity. γ: ``init_scale``.
        Patch convolution: PyTorch's default."""
        for module in self.modules():
            if isinstance(module, nn.Linear | TokenMixing):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Affine):
                nn.init.ones_(module.alpha)
                nn.init.zeros_(module.beta)
            elif isinstance(module, Block):
                nn.init.constant_(module.gamma_1, self.config.init_scale)
                nn.init.constant_(module.gamma_2, self.config.init_scale)
            elif isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def embed(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        """Patch tokens and their grid; warns at the first evaluation off the trained one."""
        tokens, grid = self.patch_embed(x)
        # A compiled or exported model is silent: it can neither warn nor compare its free grid with the trained one.
        silent = torch.compiler.is_compiling() or self.warned or self.training
        if not silent and grid != self.config.grid:
            self.warned = True
            (rows, columns), (own_rows, own_columns) = grid, self.config.grid
            warnings.warn(
                f"ResMLP learnt to mix a grid of {own_rows}x{own_columns} tokens and now sees {rows}x{columns}: its"
                " matrices are resampled, which no paper has measured (any_size=True: trained at several sizes)",
                UserWarning,
                stacklevel=1,
            )
        return tokens, grid

    def run_block(self, block: nn.Module, tokens: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        """One block, its activations stored or recomputed."""
        return run_block(block, tokens, grid, recompute=self.grad_checkpointing and self.training)

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b n c"]:
        """Image -> tokens after the final affine; n = ceil(h / patch) * ceil(w / patch)."""
        tokens, grid = self.embed(x)
        for block in self.blocks:
            tokens = self.run_block(block, tokens, grid)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward_head(self, x: Float[Tensor, "b n c"], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Tokens -> logits; with ``pre_logits`` their average."""
        x = x.mean(dim=1)
        return x if pre_logits else self.get_classifier()(x)

    def patch_tokens(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The tokens themselves: there is no class token."""
        return x

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        """Image -> logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "b k h w"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
        output_fmt: Format = "NCHW",
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The tokens after each of the blocks ``indices``, as maps or tokens; ``norm`` fits them all."""
        wanted = take_indices(len(self.blocks), indices)
        tokens, grid = self.embed(x)
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens, grid)
            if i in wanted:
                patches = self.norm(tokens) if norm else tokens
                found[i] = to_maps(patches, grid) if output_fmt == "NCHW" else patches
        intermediates = [found[i] for i in wanted]
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def get_classifier(self) -> nn.Module:
        """Pooled vector (b, c) -> logits (b, k)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none); pooling is the average."""
        check_pool(global_pool, "avg", "ResMLP")
        self.num_classes = num_classes
        self.head = new_head(self.num_features, num_classes, like=self.norm.alpha)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: patches, blocks, norm; head last."""
        return {"stem": r"^patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """None by name: α, β and γ are vectors, which the common rule spares already."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's names become the official ones; mixing matrices of another square grid are carried to this one's.

        A matrix of as many tokens as this model has is taken as it is. Raises UserError for another count without a
        whole square root, since a file does not say on which grid it was trained.
        """
        if any(".linear_tokens." in key for key in state):
            state = {rename(key): tensor for key, tensor in state.items()}
        for key, tensor in state.items():
            n = tensor.shape[-1] if tensor.ndim else 0
            if re.search(r"norm\d?\.(alpha|beta)$", key):
                state[key] = tensor.flatten()  # timm writes (1, 1, c)
            elif re.search(r"\.attn\.(weight|bias)$", key) and n and tensor.shape in ((n, n), (n,)):
                state[key] = self.resize_mixing(key, tensor)
        return state

    def resize_mixing(self, key: str, tensor: Tensor) -> Tensor:
        """A mixing matrix (n, n) or bias (n) of a file, on this model's grid."""
        n, grid = len(tensor), self.config.grid
        if n == math.prod(grid):
            return tensor
        side = math.isqrt(n)
        if side * side != n:
            raise UserError(f"{key} mixes {n} tokens, no square grid: build the model at the img_size of the file")
        resample = resample_mixing if tensor.ndim == 2 else resample_bias
        return resample(tensor, (side, side), grid)


RENAMES = (
    (r"^stem\.", "patch_embed."),
    (r"\.linear_tokens\.", ".attn."),
    (r"\.mlp_channels\.", ".mlp."),
    (r"\.ls([12])$", r".gamma_\1"),
)
"""timm's later names -> the official ones."""


def rename(key: str) -> str:
    """The official name of a state-dict key."""
    for pattern, official in RENAMES:
        key = re.sub(pattern, official, key)
    return key


def preprocessing(config: ResMLPConfig) -> dict[str, Any]:
    """timm's pretrained_cfg; the official evaluation resizes the short side to int(S / 0.9) and crops S."""
    return timm_cfg(config.num_classes, (config.in_chans, *config.image), 0.9, "patch_embed.proj")


Config, Model = ResMLPConfig, ResMLP
VARIANTS: dict[str, ResMLPConfig] = {
    "resmlp_12": ResMLPConfig(),
    "resmlp_24": ResMLPConfig(depth=24, init_scale=1e-5),
    "resmlp_36": ResMLPConfig(depth=36, init_scale=1e-6),
    "resmlpB_24": ResMLPConfig(dim=768, depth=24, patch_size=8, init_scale=1e-6),
    # From the paper only, in no official code: B24/16.
    "resmlpB_24_p16": ResMLPConfig(dim=768, depth=24, init_scale=1e-6),
    # Ours, in no paper: small enough for a laptop's processor.
    "resmlp_nano": ResMLPConfig(dim=128, depth=6, patch_size=8, img_size=64),
}
