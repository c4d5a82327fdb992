"""CaiT: a deep vision transformer in two phases, patches that talk among themselves, then a class that listens.

Touvron, Cord, Sablayrolles, Synnaeve, Jégou: "Going deeper with Image Transformers", ICCV 2021, arXiv:2103.17239.
The released weights, trained with distillation; top-1 on ImageNet-1k at the side in px (a star: no figure of the
authors' is at hand, this one was measured by timm; parameters and MACs are the code's):

    ==============  ====  ==========  =======  =====
    model           side  parameters     MACs  top-1
    cait_XXS24_224   224      12.0 M    2.5 G  78.4*
    cait_XXS24       384      12.0 M    9.6 G  81.0*
    cait_XXS36_224   224      17.3 M    3.8 G  79.8*
    cait_XXS36       384      17.4 M   14.3 G  82.2*
    cait_XS24        384      26.7 M   19.2 G  84.1
    cait_S24_224     224      46.9 M    9.3 G  83.5
    cait_S24         384      47.1 M   32.1 G  85.1
    cait_S36         384      68.4 M   47.9 G  85.4
    cait_M36         384     271.2 M  172.9 G  86.1
    cait_M48         448     356.5 M  329.1 G  86.5
    ==============  ====  ==========  =======  =====

In the trunk (section 2) every branch is scaled by a learned γ per channel, small at first, and attention is of
talking heads: a linear layer over the heads before the softmax, another after it. Then the class token enters
(section 3): two class-attention blocks in which it alone is updated, from patch tokens that no longer change.

XXS36 starts with γ = 1e-5 as in the official code; the paper's table says 1e-6. **Evaluate cait_M48 in float32**: its
accuracy drops in half precision, say the authors.

Deviations from the official code, none of which changes a result where that code runs (the construction size):

* The position table, which has no row for the class token, is resampled from its own grid to the image's.
* A side that is no multiple of the patch is padded with zeros on the right or at the bottom.
* The softmax over talking heads is taken in float32 in half precision, with or without autocast. Scores are stored,
  (b, g, n, n), since heads are mixed on both sides of the softmax, but no more than two such tensors at once in
  evaluation: at 1024 px in float32 cait_XXS24 takes 0.5 GB for them per image, cait_M48 2.1 GB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import (
    Backbone,
    Format,
    Style,
    Traits,
    check_pool,
    is_table,
    shape_in_timm,
    take_indices,
    timm_cfg,
)
from anyres.ops.attention import attend
from anyres.ops.head import new_head
from anyres.ops.mixed_heads import talking_heads
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, PatchEmbed, grid_of, to_maps
from anyres.ops.recompute import run_block
from anyres.ops.resample import resample_table
from anyres.ops.residual import Branch, StochasticDepth, add_kept, add_norm

CLASS_BLOCKS = 2


@config
class CaiTConfig:
    """Widths and depths; heads are 48 wide, the MLP ratio is 4, the norms' epsilon 1e-6 throughout."""

    dim: int = 192
    """Channels c, a multiple of ``heads``."""
    depth: int = 24
    """Blocks of the trunk; class-attention blocks are two, always."""
    heads: int = 4
    patch_size: int = 16
    img_size: int | tuple[int, int] = 224
    """Pixels, a side or (height, width), of the grid the position table is stored on."""
    init_scale: float = 1e-5
    """Initial gamma of the residual branches; the deeper the smaller."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth, the same in every block of the trunk; none in class attention."""

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.heads, self.patch_size, self.in_chans, *self.image)
        if min(sizes) < 1 or self.num_classes < 0:
            raise UserError(f"CaiT's sizes must be positive: {self}")
        if self.dim % self.heads:
            raise UserError(f"CaiT's dim ({self.dim}) must be a multiple of its heads ({self.heads})")
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


class TalkingHeads(nn.Module):
    """Self-attention whose heads are mixed before the softmax (``proj_l``) and after it (``proj_w``)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_l = nn.Linear(heads, heads)
        self.proj_w = nn.Linear(heads, heads)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # (b, n, 3c) -> (b, n, 3, g, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, n, d)
        query = query * query.shape[-1] ** -0.5
        before, after = self.proj_l, self.proj_w
        x = self.proj(talking_heads(query, key, value, before.weight, before.bias, after.weight, after.bias))
        return x


class ClassAttention(nn.Module):
    """Attention of one query, the class token's, over the class token and the patches."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b 1 c"]:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (b, t, c) -> (b, t, g, d) -> (b, g, t, d)
            for part in (self.q(x[:, :1]), self.k(x), self.v(x))
        )
        heard: Tensor = self.proj(attend(query, key, value))
        return heard


class Block(nn.Module):
    """The trunk's: x + DropPath(γ₁ TalkingHeads(LN x)), then x + DropPath(γ₂ Mlp(LN x)), with independent masks."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.empty(dim))
        self.gamma_2 = nn.Parameter(torch.empty(dim))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = TalkingHeads(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        if self.drop_path.skips and self.training:
            return add_kept(x, self.branches(), self.drop_path)
        x, normed = add_norm(x, self.attn(self.norm1(x)), self.gamma_1, self.drop_path, self.norm2)
        x = x + self.drop_path(self.gamma_2 * self.mlp(normed))
        return x

    def branches(self) -> tuple[Branch, ...]:
        return lambda y: self.gamma_1 * self.attn(self.norm1(y)), lambda y: self.gamma_2 * self.mlp(self.norm2(y))


class ClassBlock(nn.Module):
    """The class token's: z + γ₁ ClassAttention(LN [z; x]), then z + γ₂ Mlp(LN z). The patch tokens x stay."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.empty(dim))
        self.gamma_2 = nn.Parameter(torch.empty(dim))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, token: Float[Tensor, "b 1 c"], patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
        token = token + self.gamma_1 * self.attn(self.norm1(torch.cat((token, patches), dim=1)))
        token = token + self.gamma_2 * self.mlp(self.norm2(token))
        return token


def _in_timm(model: CaiT) -> tuple[str, dict[str, Any]] | None:
    """How timm by itself builds the model."""
    return "cait_xxs24_224", shape_in_timm(model.config)


class CaiT(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(
        attention=(TalkingHeads, ClassAttention),
        windows="tokens",
        fold="anyres.deploy.fuse.cait:FoldedCaiT",
        look="anyres.maps.readers:class_attention",
        timm=_in_timm,
    )

    def __init__(self, config: CaiTConfig) -> None:
        super().__init__()
        dim, depth, heads = config.dim, config.depth, config.heads
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = dim
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": config.patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.pretrained_cfg = preprocessing(config)

        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(config.grid), dim))
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        self.blocks = nn.ModuleList(Block(dim, heads, config.drop_path) for _ in range(depth))
        self.blocks_token_only = nn.ModuleList(ClassBlock(dim, heads) for _ in range(CLASS_BLOCKS))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears (those over heads too), class token and position table: truncated normal 0.02, biases 0.
        γ of both phases: ``init_scale``. Patch convolution: PyTorch's default."""
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Block | ClassBlock):
                nn.init.constant_(module.gamma_1, self.config.init_scale)
                nn.init.constant_(module.gamma_2, self.config.init_scale)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()

    def embed(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        """Patch tokens with their positions, and their grid."""
        tokens, grid = self.patch_embed(x)
        return tokens + resample_table(self.pos_embed, self.config.grid, grid), grid

    def run_block(self, block: nn.Module, *tokens: Float[Tensor, "b _ c"]) -> Float[Tensor, "b _ c"]:
        """One block of either phase, its activations stored or recomputed."""
        return run_block(block, *tokens, recompute=self.grad_checkpointing and self.training)

    def listen(self, patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b t c"]:
        """The second phase: the trunk's patch tokens -> normalised [class; patches]."""
        token = self.cls_token.repeat(patches.shape[0], 1, 1)
        for block in self.blocks_token_only:
            token = self.run_block(block, token, patches)
        normed: Tensor = self.norm(torch.cat((token, patches), dim=1))
        return normed

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b t c"]:
        """Image -> normalised tokens, the class token first; n = ceil(h / patch) * ceil(w / patch)."""
        tokens, _ = self.embed(x)
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
        return self.listen(tokens)

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
        """The patch tokens after each of the trunk's blocks ``indices``, as maps or tokens; ``norm`` fits them all."""
        wanted = take_indices(len(self.blocks), indices)
        tokens, grid = self.embed(x)
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens)
            if i in wanted:
                patches = self.norm(tokens) if norm else tokens
                found[i] = to_maps(patches, grid) if output_fmt == "NCHW" else patches
        intermediates = [found[i] for i in wanted]
        return intermediates if intermediates_only else (self.listen(tokens), intermediates)

    def become_bottom_up(self, stages: Sequence[int], style: Style) -> None:  # noqa: ARG002
        """Without all that makes or reads the class token."""
        del self.head, self.cls_token, self.blocks_token_only

    def get_classifier(self) -> nn.Module:
        """Class token (b, c) -> logits (b, k)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none); pooling is the class token."""
        check_pool(global_pool, "token", "CaiT")
        self.num_classes = num_classes
        self.head = new_head(self.num_features, num_classes, like=self.norm.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: embeddings, trunk, class blocks (the class token with the first); head last."""
        return {
            "stem": r"^pos_embed|^patch_embed",
            "blocks": r"^blocks\.(\d+)",
            "class": [(r"^cls_token", (0,)), (r"^blocks_token_only\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Position table and class token; γ is a vector, which the common rule spares already."""
        return {"pos_embed", "cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names are the official ones in timm too; a position table of another square grid is carried to this one's.

        A table of as many tokens as this model has is taken as it is. Raises UserError for another count without a
        whole square root, since a file does not say on which grid it was trained.
        """
        table = state.get("pos_embed")
        if not is_table(table) or table.shape[1] == math.prod(self.config.grid):
            return state
        n = table.shape[1]
        side = math.isqrt(n)
        if side * side != n:
            raise UserError(f"pos_embed holds {n} tokens, no square grid: build the model at the img_size of the file")
        return {**state, "pos_embed": resample_table(table, (side, side), self.config.grid)}


def preprocessing(config: CaiTConfig) -> dict[str, Any]:
    """timm's pretrained_cfg; the official evaluation resizes the short side to S and crops S."""
    return timm_cfg(config.num_classes, (config.in_chans, *config.image), 1.0, "patch_embed.proj")


Config, Model = CaiTConfig, CaiT
VARIANTS: dict[str, CaiTConfig] = {
    "cait_XXS24_224": CaiTConfig(),
    "cait_XXS24": CaiTConfig(img_size=384),
    "cait_XXS36_224": CaiTConfig(depth=36),
    "cait_XXS36": CaiTConfig(depth=36, img_size=384),
    "cait_XS24": CaiTConfig(dim=288, heads=6, img_size=384),
    "cait_S24_224": CaiTConfig(dim=384, heads=8),
    "cait_S24": CaiTConfig(dim=384, heads=8, img_size=384),
    "cait_S36": CaiTConfig(dim=384, depth=36, heads=8, img_size=384, init_scale=1e-6),
    "cait_M36": CaiTConfig(dim=768, depth=36, heads=16, img_size=384, init_scale=1e-6),
    "cait_M48": CaiTConfig(dim=768, depth=48, heads=16, img_size=448, init_scale=1e-6),
}
