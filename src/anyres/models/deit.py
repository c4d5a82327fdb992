"""DeiT: a vision transformer trained on ImageNet-1k alone, and its distilled form with a second token and head.

Touvron, Cord, Douze, Massa, Sablayrolles, Jégou: "Training data-efficient image transformers & distillation through
attention", ICML 2021, arXiv:2012.12877. Top-1 on ImageNet-1k, as the official repository gives it:

    ===========================  ==========  ======  =====
    model                        parameters    MACs  top-1
    deit_tiny_patch16_224             5.7 M   1.3 G   72.2
    deit_small_patch16_224           22.1 M   4.6 G   79.9
    deit_base_patch16_224            86.6 M  17.6 G   81.8
    deit_base_patch16_384            86.9 M  55.5 G   82.9
    deit_tiny_distilled_...           5.9 M   1.3 G   74.5
    deit_small_distilled_...         22.4 M   4.6 G   81.2
    deit_base_distilled_..._224      87.3 M  17.7 G   83.4
    deit_base_distilled_..._384      87.6 M  55.6 G   85.2
    ===========================  ==========  ======  =====

A class token, in the distilled form also a distillation token, and the patch tokens take their positions from one
learned table, the special tokens too, and go through pre-norm blocks. The distilled form has a classifier on each
special token and answers with the mean of their logits. The 384 px models are fine-tuned at that size.

Deviations from the official code, none of which changes an evaluation where that code runs (the construction size):

* On another grid the patches' part of the position table is resampled (antialiased bicubic), in the forward pass and
  when a file of another size is loaded. Official code does so for fine-tuning only, with a slightly different cubic.
* A side that is no multiple of the patch is padded with zeros on the right or at the bottom.
* The distilled form answers with the mean of its logits in training too, where official code returns a pair; ``heads``
  gives the pair. Its pooled vector is both tokens, and without classes it is the answer; officially, their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Traits, check_pool, is_table, shape_in_timm, take_indices, timm_cfg
from anyres.ops.attention import SelfAttention
from anyres.ops.head import new_head
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, PatchEmbed, grid_of, to_maps
from anyres.ops.recompute import run_block
from anyres.ops.resample import resample_table
from anyres.ops.residual import Branch, StochasticDepth, add_kept, add_norm


@config
class DeiTConfig:
    """Widths (paper, table 1); the MLP ratio is 4 and the norms' epsilon 1e-6 throughout."""

    dim: int = 192
    """Channels c; a multiple of ``heads``."""
    depth: int = 12
    heads: int = 3
    patch_size: int = 16
    """Side of a token in pixels, kernel and stride of the patch convolution."""
    img_size: int | tuple[int, int] = 224
    """Pixels, a side or (height, width), of the grid the position table is stored on."""
    distilled: bool = False
    """A distillation token and a classifier on it."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth of the last block; blocks before it take less, linearly from 0."""

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.heads, self.patch_size, self.in_chans, *self.image)
        if min(sizes) < 1 or self.num_classes < 0:
            raise UserError(f"DeiT's sizes must be positive: {self}")
        if self.dim % self.heads:
            raise UserError(f"DeiT's dim ({self.dim}) must be a multiple of its heads ({self.heads})")
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

    @property
    def specials(self) -> int:
        """Tokens before the patches: class, and distillation if there is one."""
        return 2 if self.distilled else 1


class Block(nn.Module):
    """Pre-norm: x + DropPath(Attention(LN x)), then x + DropPath(Mlp(LN x)), with independent masks."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        if self.drop_path.skips and self.training:
            return add_kept(x, self.branches(), self.drop_path)
        x, normed = add_norm(x, self.attn(self.norm1(x)), None, self.drop_path, self.norm2)
        x = x + self.drop_path(self.mlp(normed))
        return x

    def branches(self) -> tuple[Branch, ...]:
        return lambda y: self.attn(self.norm1(y)), lambda y: self.mlp(self.norm2(y))


class MeanOfHeads(nn.Module):
    """Class and distillation token side by side -> the mean of the two heads' logits."""

    def __init__(self, head: nn.Module, head_dist: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.head_dist = head_dist

    def forward(self, pooled: Float[Tensor, "b c2"]) -> Float[Tensor, "b k"]:
        token, dist_token = pooled.chunk(2, dim=1)  # each (b, c)
        logits: Tensor = (self.head(token) + self.head_dist(dist_token)) / 2
        return logits


def _in_timm(model: DeiT) -> tuple[str, dict[str, Any]] | None:
    """How timm by itself builds the model."""
    kind = "_distilled" if model.config.distilled else ""
    return f"deit_tiny{kind}_patch16_224", {**shape_in_timm(model.config), "dynamic_img_size": True}


class DeiT(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(
        attention=(SelfAttention,),
        windows="tokens",
        fold="anyres.deploy.fuse.vit:FoldedViT",
        look="anyres.maps.readers:class_token",
        timm=_in_timm,
    )

    def __init__(self, config: DeiTConfig) -> None:
        super().__init__()
        dim, depth = config.dim, config.depth
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = config.specials * dim
        self.two_heads = config.distilled
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": config.patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.pretrained_cfg = preprocessing(config)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.specials + math.prod(config.grid), dim))
        if config.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        rates = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, config.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        if config.distilled:
            self.head_dist = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears, special tokens and positions: truncated normal 0.02, biases 0. Patch convolution: PyTorch's."""
        for token in (self.pos_embed, self.cls_token, *([self.dist_token] if self.config.distilled else [])):
            trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()

    def embed(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b t c"], Grid]:
        """Special tokens and patch tokens, each with its position, and the grid of the patches."""
        count = self.config.specials
        tokens, grid = self.patch_embed(x)
        tokens = tokens + resample_table(self.pos_embed[:, count:], self.config.grid, grid)
        special = torch.cat((self.cls_token, self.dist_token), dim=1) if self.config.distilled else self.cls_token
        special = special + self.pos_embed[:, :count]
        return torch.cat((special.expand(tokens.shape[0], -1, -1), tokens), dim=1), grid

    def run_block(self, block: nn.Module, tokens: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """One block, its activations stored or recomputed."""
        return run_block(block, tokens, recompute=self.grad_checkpointing and self.training)

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b t c"]:
        """Image -> normalised tokens, the special ones first; n = ceil(h / patch) * ceil(w / patch) patches follow."""
        tokens, _ = self.embed(x)
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward_head(self, x: Float[Tensor, "b t c"], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Tokens -> logits; with ``pre_logits`` the normalised special tokens side by side (b, num_features)."""
        x = x[:, : self.config.specials].flatten(1)  # (b, 1 or 2, c) -> (b, c or 2c)
        if pre_logits:
            return x
        if self.config.distilled and self.num_classes:
            logits, dist_logits = self.heads(x)
            return (logits + dist_logits) / 2
        x = self.head(x)
        return x

    def heads(self, pooled: Float[Tensor, "b c2"]) -> tuple[Float[Tensor, "b _"], Float[Tensor, "b _"]]:
        """For a distillation objective: the pooled vector (b, 2c) -> (logits, dist_logits), each (b, k).

        The first (class token, ``head``) learns the true labels, the second (distillation token, ``head_dist``) the
        teacher's; ``model(x)`` is their mean. The pooled vector is what ``forward_head`` gives with ``pre_logits``.
        Raises UserError if the model has one head only.
        """
        if not self.config.distilled:
            raise UserError("this DeiT has no distillation head: build it with distilled=True")
        token, dist_token = pooled.chunk(2, dim=1)  # each (b, c)
        return self.head(token), self.head_dist(dist_token)

    def patch_tokens(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b n c"]:
        """The normalised tokens without the special ones."""
        return x[:, self.config.specials :]

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
                patches = self.patch_tokens(self.norm(tokens) if norm else tokens)
                found[i] = to_maps(patches, grid) if output_fmt == "NCHW" else patches
        intermediates = [found[i] for i in wanted]
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def get_classifier(self) -> nn.Module:
        """Pooled vector (b, num_features) -> logits (b, k); distilled: a view of both heads that gives their mean."""
        return MeanOfHeads(self.head, self.head_dist) if self.config.distilled and self.num_classes else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none), or two; pooling is the special tokens."""
        check_pool(global_pool, "token", "DeiT")
        self.num_classes = num_classes
        self.head = new_head(self.config.dim, num_classes, like=self.norm.weight)
        if self.config.distilled:
            self.head_dist = new_head(self.config.dim, num_classes, like=self.norm.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: embeddings, blocks, norm; heads last."""
        return {
            "stem": r"^cls_token|^dist_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Positions and class token. The distillation token does decay: the official list does not name it."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A position table of another square grid is carried to this model's; the names are official, as timm's are.

        Raises UserError for a file with a distillation token where this model has none, or the other way round, and
        for a table of another length without a whole square root, since a file does not say on which grid it was.
        """
        table = state.get("pos_embed")
        if not is_table(table):
            return state
        if ("dist_token" in state) != self.config.distilled:
            raise UserError(
                "it has a distillation token: it is for a distilled DeiT (deit_*_distilled_*, distilled=True)"
                if "dist_token" in state
                else "it has no distillation token: it is for a DeiT that is not distilled (distilled=False)"
            )
        return state | {"pos_embed": self.resize_pos_embed(table)}

    def resize_pos_embed(self, table: Float[Tensor, "1 t c"]) -> Float[Tensor, "1 u c"]:
        """The position table of a file, special tokens first, on this model's grid."""
        count, grid = self.config.specials, self.config.grid
        n = table.shape[1] - count
        if n == math.prod(grid):
            return table
        side = math.isqrt(max(n, 0))
        if n < 1 or side * side != n:
            raise UserError(
                f"pos_embed has {n + count} rows, no square grid and {count} for special tokens: build the model at the"
                " img_size of the file"
            )
        return torch.cat((table[:, :count], resample_table(table[:, count:], (side, side), grid)), dim=1)


def preprocessing(config: DeiTConfig) -> dict[str, Any]:
    """timm's pretrained_cfg; the official evaluation resizes the short side to int(S / 0.875) and crops S."""
    return timm_cfg(
        config.num_classes,
        (config.in_chans, *config.image),
        0.875,
        "patch_embed.proj",
        ("head", "head_dist") if config.distilled else "head",
    )


Config, Model = DeiTConfig, DeiT
VARIANTS: dict[str, DeiTConfig] = {
    "deit_tiny_patch16_224": DeiTConfig(),
    "deit_small_patch16_224": DeiTConfig(dim=384, heads=6),
    "deit_base_patch16_224": DeiTConfig(dim=768, heads=12),
    "deit_base_patch16_384": DeiTConfig(dim=768, heads=12, img_size=384),
    "deit_tiny_distilled_patch16_224": DeiTConfig(distilled=True),
    "deit_small_distilled_patch16_224": DeiTConfig(dim=384, heads=6, distilled=True),
    "deit_base_distilled_patch16_224": DeiTConfig(dim=768, heads=12, distilled=True),
    "deit_base_distilled_patch16_384": DeiTConfig(dim=768, heads=12, img_size=384, distilled=True),
}
