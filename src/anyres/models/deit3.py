"""DeiT III, and the parallel blocks and the hMLP stem of "Three things": plain vision transformers, well trained.

Touvron, Cord, Jégou: "DeiT III: Revenge of the ViT", ECCV 2022, arXiv:2204.07118.
Touvron, Cord, El-Nouby, Verbeek, Jégou: "Three things everyone should know about Vision Transformers", ECCV 2022,
arXiv:2203.09795.
Top-1 on ImageNet-1k, trained on it alone / on ImageNet-21k before (repository's table):

    ======================  ==========  ==========  ===========  ===========
    model                   parameters  MACs (224)          224          384
    deit_small_patch16_LS       22.1 M       4.6 G  81.4 / 83.1  83.4 / 84.8
    deit_medium_patch16_LS      38.8 M       8.0 G  83.0 / 84.5            -
    deit_base_patch16_LS        86.6 M      17.6 G  83.8 / 85.7  85.0 / 86.7
    deit_large_patch16_LS      304.4 M      61.6 G  84.9 / 87.0  85.8 / 87.7
    deit_huge_patch14_LS       632.1 M     167.3 G  85.2 / 87.2            -
    deit_small_..36, 18x2       64.6 M      13.7 G  (no number in the repository)
    deit_base_..36x1, 18x2     256.7 M      52.5 G  (no number in the repository)
    ======================  ==========  ==========  ===========  ===========

A ViT whose class token joins after the positions were added, so the table has one row per patch and none for it.
Residual branches are scaled by a learned γ ("LS"), from 1e-4. A parallel block ("x2") sums two attentions, then two
MLPs, each pair reading the same input. The hMLP stem replaces the patch convolution by three that, together, still look
at one patch at a time, so masking tokens before it or after it is the same.

Deviations from the official code, none of which changes a result where that code runs (the construction size, a
multiple of the patch):

* On another grid the position table is resampled (bicubic, antialiased) from the one of ``img_size``.
* A side that is no multiple of the patch is padded with zeros on the right or at the bottom, not cut.
* ``deit_Giant_48x2_patch14_LS`` and ``deit_giant_40x2_patch14_LS`` cannot be built officially (their block's class does
  not exist): here they are what their names say, parallel blocks with γ. ``deit_medium_patch16_LS`` heeds ``img_size``.
* The hMLP stem is an option (``stem="hmlp"``). Its norm is a plain batch norm; officially it is one over all processes
  (``stem_norm="sync"``). In training, a batch norm wants more than one value per channel: one image of at most
  16x16 px, one token, will not do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Traits, check_pool, is_table, shape_in_timm, take_indices, timm_cfg
from anyres.ops.attention import SelfAttention
from anyres.ops.head import new_head
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, PatchEmbed, grid_of, pad_to_multiple, to_maps, to_tokens
from anyres.ops.recompute import run_block
from anyres.ops.resample import resample_table
from anyres.ops.residual import Branch, DropPath, StochasticDepth, add_kept, add_norm

INITIAL_GAMMA = 1e-4


@config
class DeiT3Config:
    """Widths and depths (DeiT III, table 1); the MLP ratio is 4 and the norms' epsilon 1e-6 throughout."""

    dim: int = 192
    depth: int = 12
    heads: int = 3
    patch_size: int = 16
    img_size: int | tuple[int, int] = 224
    """Pixels, a side or (height, width), of the grid the position table is stored on."""
    parallel: bool = False
    """Blocks of two attentions side by side and two MLPs side by side."""
    layer_scale: bool = True
    """Residual branches are multiplied by a learned gamma."""
    stem: Literal["patch", "hmlp"] = "patch"
    """One convolution, or the three of hMLP, for which the patch is 16."""
    stem_norm: Literal["batch", "sync"] = "batch"
    """Batch norm of the hMLP stem, of a process or over all processes; "sync" over several of them needs GPUs."""
    crop_pct: float = 1.0
    """Of the resized image, the part its evaluation crops."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth, the same in every block."""

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.heads, self.patch_size, self.in_chans, *self.image)
        if min(sizes) < 1 or self.num_classes < 0:
            raise UserError(f"DeiT III's sizes must be positive: {self}")
        if self.dim % self.heads:
            raise UserError(f"DeiT III's dim ({self.dim}) must be a multiple of its heads ({self.heads})")
        if self.stem not in ("patch", "hmlp") or self.stem_norm not in ("batch", "sync"):
            raise UserError(
                f"stem is 'patch' or 'hmlp', stem_norm 'batch' or 'sync', not {self.stem!r}, {self.stem_norm!r}"
            )
        if self.stem == "hmlp" and (self.patch_size != 16 or self.dim % 4):
            raise UserError(
                f"stem='hmlp' wants patch_size 16 and dim a multiple of 4, not {self.patch_size}, {self.dim}"
            )
        if self.stem == "patch" and self.stem_norm == "sync":
            raise UserError("stem_norm='sync' needs stem='hmlp': the patch stem has no norm")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path must lie in [0, 1), not {self.drop_path}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct must lie in (0, 1], not {self.crop_pct}")

    @property
    def image(self) -> tuple[int, int]:
        """``img_size`` as (height, width)."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> Grid:
        """Rows and columns of tokens at ``img_size``, a cut patch counted as one."""
        return grid_of(self.img_size, self.patch_size)


class HMLPStem(nn.Module):
    """Hierarchical MLP (Three things, section 5): convolutions of kernel = stride = 4, 2, 2, each with batch norm.

    GELU lies between them; the first two have c/4 channels. A side that is no multiple of 16 is padded as by
    ``PatchEmbed``. Raises ValueError (PyTorch's) in training for a batch that is a single token.
    """

    def __init__(self, in_chans: int, dim: int, norm: type[nn.BatchNorm2d | nn.SyncBatchNorm]) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 4, kernel_size=4, stride=4),
            norm(dim // 4),
            nn.GELU(),
            nn.Conv2d(dim // 4, dim // 4, kernel_size=2, stride=2),
            norm(dim // 4),
            nn.GELU(),
            nn.Conv2d(dim // 4, dim, kernel_size=2, stride=2),
            norm(dim),
        )

    def forward(self, image: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        """Returns tokens (b, n, c) in row-major order and their grid (ceil(h / 16), ceil(w / 16))."""
        maps = self.proj(pad_to_multiple(image, 16))
        return to_tokens(maps), (maps.shape[2], maps.shape[3])


def new_gamma(dim: int, layer_scale: bool) -> nn.Parameter | None:
    """A branch's scale per channel, drawn by ``init_weights``; None: the branch is not scaled."""
    return nn.Parameter(torch.empty(dim)) if layer_scale else None


def scaled(gamma: nn.Parameter | None, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
    """γ x, or x itself."""
    return x if gamma is None else gamma * x


class Block(nn.Module):
    """Pre-norm: x + DropPath(γ₁ Attention(LN x)), then x + DropPath(γ₂ Mlp(LN x)), with independent masks."""

    def __init__(self, dim: int, heads: int, layer_scale: bool, drop_path: float) -> None:
        super().__init__()
        self.gamma_1 = new_gamma(dim, layer_scale)
        self.gamma_2 = new_gamma(dim, layer_scale)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        if self.drop_path.skips and self.training:
            return add_kept(x, self.branches(), self.drop_path)
        x, normed = add_norm(x, self.attn(self.norm1(x)), self.gamma_1, self.drop_path, self.norm2)
        x = x + self.drop_path(scaled(self.gamma_2, self.mlp(normed)))
        return x

    def branches(self) -> tuple[Branch, ...]:
        return (
            lambda y: scaled(self.gamma_1, self.attn(self.norm1(y))),
            lambda y: scaled(self.gamma_2, self.mlp(self.norm2(y))),
        )


class ParallelBlock(nn.Module):
    """Three things, section 3: two attentions read the same x and are added to it, then two MLPs likewise.

    Each of the four branches has its own norm, weights, γ and stochastic-depth mask.
    """

    def __init__(self, dim: int, heads: int, layer_scale: bool, drop_path: float) -> None:
        super().__init__()
        self.gamma_1 = new_gamma(dim, layer_scale)
        self.gamma_1_1 = new_gamma(dim, layer_scale)
        self.gamma_2 = new_gamma(dim, layer_scale)
        self.gamma_2_1 = new_gamma(dim, layer_scale)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.norm11 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.attn1 = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.norm21 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.mlp1 = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        first = self.drop_path(scaled(self.gamma_1, self.attn(self.norm1(x))))
        second = self.drop_path(scaled(self.gamma_1_1, self.attn1(self.norm11(x))))
        x = x + first + second
        first = self.drop_path(scaled(self.gamma_2, self.mlp(self.norm2(x))))
        second = self.drop_path(scaled(self.gamma_2_1, self.mlp1(self.norm21(x))))
        x = x + first + second
        return x


def _in_timm(model: DeiT3) -> tuple[str, dict[str, Any]] | None:
    """How timm by itself builds the model."""
    config = model.config
    if config.parallel or config.stem != "patch":
        return None
    return "deit3_small_patch16_224", {
        **shape_in_timm(config),
        "dynamic_img_size": True,
        "init_values": 1e-6 if config.layer_scale else None,
    }


class DeiT3(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(
        attention=(SelfAttention,),
        windows="tokens",
        fold="anyres.deploy.fuse.vit:FoldedViT",
        look="anyres.maps.readers:class_token",
        timm=_in_timm,
    )

    def __init__(self, config: DeiT3Config) -> None:
        super().__init__()
        dim = config.dim
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = dim
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": config.patch_size, "module": f"blocks.{i}"} for i in range(config.depth)
        ]
        self.pretrained_cfg = preprocessing(config)

        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(config.grid), dim))
        self.patch_embed: nn.Module
        if config.stem == "hmlp":
            norm = nn.BatchNorm2d if config.stem_norm == "batch" else nn.SyncBatchNorm
            self.patch_embed = HMLPStem(config.in_chans, dim, norm)
        else:
            self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        block = ParallelBlock if config.parallel else Block
        self.blocks = nn.ModuleList(
            block(dim, config.heads, config.layer_scale, config.drop_path) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears, position table and class token: truncated normal 0.02, biases 0. γ: 1e-4. Norms: one and zero,
        running statistics too. Convolutions: PyTorch's default."""
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)
        for name, parameter in self.blocks.named_parameters():
            if "gamma" in name:
                nn.init.constant_(parameter, INITIAL_GAMMA)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.SyncBatchNorm | nn.Conv2d):
                module.reset_parameters()

    def embed(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b t c"], Grid]:
        """Patch tokens with their positions, the class token (which has none) before them, and the patches' grid."""
        tokens, grid = self.patch_embed(x)
        tokens = tokens + resample_table(self.pos_embed, self.config.grid, grid)
        return torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1), grid

    def run_block(self, block: nn.Module, tokens: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """One block, its activations stored or recomputed."""
        return run_block(block, tokens, recompute=self.grad_checkpointing and self.training)

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b t c"]:
        """Image -> normalised tokens, the class token first; n = ceil(h / patch) * ceil(w / patch)."""
        tokens, _ = self.embed(x)
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward_head(self, x: Float[Tensor, "b t c"], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Tokens -> logits; with ``pre_logits`` the normalised class token."""
        x = x[:, 0]
        return x if pre_logits else self.get_classifier()(x)

    def patch_tokens(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b n c"]:
        """The normalised tokens without the class token."""
        return x[:, 1:]

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
        """The patch tokens after each of the blocks ``indices``, as maps or tokens; ``norm`` fits them all."""
        wanted = take_indices(len(self.blocks), indices)
        tokens, grid = self.embed(x)
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens)
            if i in wanted:
                patches = (self.norm(tokens) if norm else tokens)[:, 1:]
                found[i] = to_maps(patches, grid) if output_fmt == "NCHW" else patches
        intermediates = [found[i] for i in wanted]
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def get_classifier(self) -> nn.Module:
        """Class token (b, c) -> logits (b, k)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none); pooling is the class token."""
        check_pool(global_pool, "token", "DeiT III")
        self.num_classes = num_classes
        self.head = new_head(self.num_features, num_classes, like=self.norm.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: embeddings, blocks, norm; head last."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """The position table and the class token."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's names become the official ones; the position table of another square grid is carried to this one's.

        A table of as many rows as this model has is taken as it is. Raises UserError for another one without a whole
        square root, and says so if it looks like DeiT's, which begins with a row for the class token.
        """
        state = {rename(key): tensor for key, tensor in state.items()}
        table = state.get("pos_embed")
        if is_table(table):
            state["pos_embed"] = self.resize_pos_embed(table)
        return state

    def resize_pos_embed(self, table: Float[Tensor, "b n c"]) -> Float[Tensor, "b m c"]:
        """A file's position table on this model's grid."""
        n, grid = table.shape[1], self.config.grid
        if n == math.prod(grid):
            return table
        side = math.isqrt(n)
        if side * side == n:
            return resample_table(table, (side, side), grid)
        for tokens, family in ((1, "DeiT"), (2, "distilled DeiT")):
            if math.isqrt(n - tokens) ** 2 == n - tokens:
                raise UserError(
                    f"pos_embed has {n} rows, {tokens} more than a square: the file looks like {family}, whose table"
                    " includes tokens that are no patches; DeiT III's has patches only"
                )
        raise UserError(f"pos_embed has {n} rows, no square grid: build the model at the img_size of the file")


RENAMES = (
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.attns\.0\.norm\.", ".norm1."),
    (r"\.attns\.1\.norm\.", ".norm11."),
    (r"\.attns\.0\.attn\.", ".attn."),
    (r"\.attns\.1\.attn\.", ".attn1."),
    (r"\.attns\.0\.ls\.gamma$", ".gamma_1"),
    (r"\.attns\.1\.ls\.gamma$", ".gamma_1_1"),
    (r"\.ffns\.0\.norm\.", ".norm2."),
    (r"\.ffns\.1\.norm\.", ".norm21."),
    (r"\.ffns\.0\.mlp\.", ".mlp."),
    (r"\.ffns\.1\.mlp\.", ".mlp1."),
    (r"\.ffns\.0\.ls\.gamma$", ".gamma_2"),
    (r"\.ffns\.1\.ls\.gamma$", ".gamma_2_1"),
)
"""timm's names (deit3_*; parallel: vit_*_18x2 with no_embed_class) -> the official ones."""


def rename(key: str) -> str:
    """The official name of a state-dict key."""
    for pattern, official in RENAMES:
        key = re.sub(pattern, official, key)
    return key


def preprocessing(config: DeiT3Config) -> dict[str, Any]:
    """timm's pretrained_cfg. DeiT III is evaluated uncropped; for Three things 0.875 is the script's default, as its
    text says nothing."""
    return timm_cfg(
        config.num_classes,
        (config.in_chans, *config.image),
        config.crop_pct,
        "patch_embed.proj.0" if config.stem == "hmlp" else "patch_embed.proj",
    )


Config, Model = DeiT3Config, DeiT3
VARIANTS: dict[str, DeiT3Config] = {
    "deit_tiny_patch16_LS": DeiT3Config(),
    "deit_small_patch16_LS": DeiT3Config(dim=384, heads=6),
    "deit_medium_patch16_LS": DeiT3Config(dim=512, heads=8),
    "deit_base_patch16_LS": DeiT3Config(dim=768, heads=12),
    "deit_large_patch16_LS": DeiT3Config(dim=1024, depth=24, heads=16),
    "deit_huge_patch14_LS": DeiT3Config(dim=1280, depth=32, heads=16, patch_size=14),
    "deit_huge_patch14_52_LS": DeiT3Config(dim=1280, depth=52, heads=16, patch_size=14),
    "deit_huge_patch14_26x2_LS": DeiT3Config(dim=1280, depth=26, heads=16, patch_size=14, parallel=True),
    "deit_Giant_48_patch14_LS": DeiT3Config(dim=1664, depth=48, heads=16, patch_size=14),
    "deit_giant_40_patch14_LS": DeiT3Config(dim=1408, depth=40, heads=16, patch_size=14),
    "deit_Giant_48x2_patch14_LS": DeiT3Config(dim=1664, depth=48, heads=16, patch_size=14, parallel=True),
    "deit_giant_40x2_patch14_LS": DeiT3Config(dim=1408, depth=40, heads=16, patch_size=14, parallel=True),
    "deit_small_patch16_36_LS": DeiT3Config(dim=384, depth=36, heads=6, crop_pct=0.875),
    "deit_small_patch16_36": DeiT3Config(dim=384, depth=36, heads=6, layer_scale=False, crop_pct=0.875),
    "deit_small_patch16_18x2_LS": DeiT3Config(dim=384, depth=18, heads=6, parallel=True, crop_pct=0.875),
    "deit_small_patch16_18x2": DeiT3Config(
        dim=384, depth=18, heads=6, parallel=True, layer_scale=False, crop_pct=0.875
    ),
    "deit_base_patch16_36x1_LS": DeiT3Config(dim=768, depth=36, heads=12, crop_pct=0.875),
    "deit_base_patch16_36x1": DeiT3Config(dim=768, depth=36, heads=12, layer_scale=False, crop_pct=0.875),
    "deit_base_patch16_18x2_LS": DeiT3Config(dim=768, depth=18, heads=12, parallel=True, crop_pct=0.875),
    "deit_base_patch16_18x2": DeiT3Config(
        dim=768, depth=18, heads=12, parallel=True, layer_scale=False, crop_pct=0.875
    ),
}
