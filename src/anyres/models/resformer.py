"""ResFormer: a vision transformer that holds its accuracy when the resolution changes.

Tian, Wu, Dai, Hu, Qiao, Jiang: "ResFormer: Scaling ViTs with Multi-Resolution Training", CVPR 2023, arXiv:2212.00776.
Table 1, top-1 on ImageNet-1k (trained at 128, 160, 224 px), 5.7 / 22.0 / 86.4 M parameters:

    ====================  =====  =====  =====  =====  =====  =====
    tested at                96    128    160    224    384    512
    resformer_tiny        61.40  67.78  71.09  73.85  75.04  73.77
    resformer_small       73.59  78.24  80.39  82.16  82.72  82.00
    resformer_base        75.86  79.74  81.52  82.72  83.29  82.63
    ====================  =====  =====  =====  =====  =====  =====

A ViT with one class token and no learned position table (section 3.2). Where a token lies is told twice: once at the
input by a *global* embedding (a sine table of the grid through a depthwise convolution), and in every attention by a
*local* one (a depthwise convolution over the values). Both are functions of the grid, so any grid will do.

Deviations from the official code, none of which changes a result where that code runs:

* Blocks take (tokens, grid); the official code takes the square root of the token count, fails for most rectangles,
  and folds a 64x144 image silently into a 6x6 grid, because its 36 tokens have a square root.
* The sine table is normalised by the number of rows and by the number of columns, each for its axis.
* A side that is no multiple of the patch is padded with zeros on the right or at the bottom, not cut.
* The sine table is computed in float32 and cast to the weights' dtype, so half precision works without autocast.
* The model returns logits, always; distillation targets (class token, pooled patches) are what ``forward_head`` and
  ``patch_tokens`` give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Traits, check_pool, take_indices, timm_cfg
from anyres.ops.attention import attend
from anyres.ops.convolution import DepthwiseConv2d
from anyres.ops.head import new_head
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, PatchEmbed, to_maps, to_tokens
from anyres.ops.recompute import run_block
from anyres.ops.residual import Branch, StochasticDepth, add_kept, add_norm


@config
class ResFormerConfig:
    """Widths and depths (paper, section 4.1); the MLP ratio is 4 and the norms' epsilon 1e-6 throughout."""

    dim: int = 192
    """Channels c; even, and a multiple of ``heads``."""
    depth: int = 12
    heads: int = 3
    patch_size: int = 16
    """Side of a token in pixels, kernel and stride of the patch convolution."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth of the last block; blocks before it take less, linearly from 0."""

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads, self.patch_size, self.in_chans) < 1 or self.num_classes < 0:
            raise UserError(f"ResFormer's sizes must be positive: {self}")
        if self.dim % self.heads or self.dim % 2:
            raise UserError(f"ResFormer's dim ({self.dim}) must be even and a multiple of its heads ({self.heads})")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path must lie in [0, 1), not {self.drop_path}")


def sine_table(grid: Grid, dim: int, device: torch.device) -> Float[Tensor, "1 c h w"]:
    """The sine-cosine table of a grid, float32: channels of the rows first, then those of the columns (section 3.2).

    Row i of h lies at y = 2π (i + 1) / (h + 1e-6), and columns alike. Channel k of an axis' c/2 channels is sin(y / f)
    for even k and cos(y / f) for odd k, f = 10000^(2 ⌊k/2⌋ / (c/2)). The order of operations is the official one.
    """
    width = dim // 2
    channel = torch.arange(width, dtype=torch.float32, device=device)
    frequency = 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)

    def axis(length: int) -> Float[Tensor, "length half"]:
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angle = (position / (position[-1:] + 1e-6) * (2 * math.pi))[:, None] / frequency
        return torch.where(channel % 2 == 0, angle.sin(), angle.cos())

    rows, columns = grid
    y = axis(rows).T[:, :, None].expand(-1, rows, columns)  # (h, c/2) -> (c/2, h, w)
    x = axis(columns).T[:, None, :].expand(-1, rows, columns)  # (w, c/2) -> (c/2, h, w)
    return torch.cat((y, x))[None]


class GlobalPosition(nn.Module):
    """GPE: a depthwise 3x3 convolution, with bias, over the sine table of the grid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed_layer = DepthwiseConv2d(dim, 3, padding=1)

    def forward(self, grid: Grid) -> Float[Tensor, "1 n c"]:
        weight = self.embed_layer.weight
        table = sine_table(grid, weight.shape[0], weight.device).to(weight.dtype)
        maps: Tensor = self.embed_layer(table)
        return to_tokens(maps)


class Attention(nn.Module):
    """Softmax attention plus LPE: a depthwise 3x3 convolution over the values, one kernel shared by all heads.

    The local term sees the patch tokens of V on their grid, before the output projection; the class token has none.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        width = dim // heads
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.get_v = DepthwiseConv2d(width, 3, padding=1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t c"], grid: Grid) -> Float[Tensor, "b t c"]:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # (b, t, 3c) -> (b, t, 3, g, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b, g, t, d)
        mixed = attend(query, key, value) + F.pad(self.local(value[:, :, 1:], grid), (0, 0, 1, 0))
        x = self.proj(mixed)
        return x

    def local(self, value: Float[Tensor, "b g n d"], grid: Grid) -> Float[Tensor, "b n c"]:
        """LPE of the patch tokens' values."""
        b, g, n, d = value.shape
        maps: Tensor = self.get_v(value.reshape(b * g, *grid, d).permute(0, 3, 1, 2))  # -> (b*g, d, h, w)
        tokens = maps.reshape(b, g, d, n).permute(0, 3, 1, 2)  # (b*g, d, h, w) -> (b, g, d, n) -> (b, n, g, d)
        return tokens.reshape(b, n, g * d)


class Block(nn.Module):
    """Pre-norm: x + DropPath(Attention(LN x)), then x + DropPath(Mlp(LN x)), with independent masks."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Float[Tensor, "b t c"], grid: Grid) -> Float[Tensor, "b t c"]:
        if self.drop_path.skips and self.training:
            return add_kept(x, self.branches(grid), self.drop_path)
        x, normed = add_norm(x, self.attn(self.norm1(x), grid), None, self.drop_path, self.norm2)
        x = x + self.drop_path(self.mlp(normed))
        return x

    def branches(self, grid: Grid) -> tuple[Branch, ...]:
        return lambda y: self.attn(self.norm1(y), grid), lambda y: self.mlp(self.norm2(y))


class ResFormer(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(
        attention=(Attention,),
        windows="grid",
        fold="anyres.deploy.fuse.resformer:FoldedResFormer",
        look="anyres.maps.readers:local",
    )

    def __init__(self, config: ResFormerConfig) -> None:
        super().__init__()
        dim, depth = config.dim, config.depth
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = dim
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": config.patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.pretrained_cfg = preprocessing(config)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        self.pos_embed = GlobalPosition(dim)
        rates = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, config.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linear and class token: truncated normal 0.02, biases 0. Patch and GPE convolutions: PyTorch's default.
        LPE: zero, so that a fresh model has no local term."""
        trunc_normal_(self.cls_token, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                module.reset_parameters()
                if name.endswith("get_v"):
                    nn.init.zeros_(module.weight)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def embed(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b t c"], Grid]:
        """Patch tokens with their global position, the class token (which has none) before them, and the grid."""
        tokens, grid = self.patch_embed(x)
        tokens = tokens + self.pos_embed(grid)
        return torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1), grid

    def run_block(self, block: nn.Module, tokens: Float[Tensor, "b t c"], grid: Grid) -> Float[Tensor, "b t c"]:
        """One block, its activations stored or recomputed."""
        return run_block(block, tokens, grid, recompute=self.grad_checkpointing and self.training)

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b t c"]:
        """Image -> normalised tokens, the class token first; n = ceil(h / patch) * ceil(w / patch)."""
        tokens, grid = self.embed(x)
        for block in self.blocks:
            tokens = self.run_block(block, tokens, grid)
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
            tokens = self.run_block(block, tokens, grid)
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
        check_pool(global_pool, "token", "ResFormer")
        self.num_classes = num_classes
        self.head = new_head(self.num_features, num_classes, like=self.norm.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: embeddings, blocks, norm; head last."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Class token, GPE and LPE: 27 tensors at depth 12."""
        marks = ("pos_embed", "get_v", "cls_token")
        return {name for name, _ in self.named_parameters() if any(mark in name for mark in marks)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The official names are ours and no tensor knows a grid: nothing to do."""
        return state


def preprocessing(config: ResFormerConfig) -> dict[str, Any]:
    """timm's pretrained_cfg. The paper tests at int(S / 0.875) -> centre crop S for every S; S here: 14 patches."""
    side = 14 * config.patch_size
    return timm_cfg(config.num_classes, (config.in_chans, side, side), 0.875, "patch_embed.proj")


Config, Model = ResFormerConfig, ResFormer
VARIANTS: dict[str, ResFormerConfig] = {
    "resformer_tiny_patch16": ResFormerConfig(dim=192, heads=3),
    "resformer_small_patch16": ResFormerConfig(dim=384, heads=6),
    "resformer_base_patch16": ResFormerConfig(dim=768, heads=12),
    # Ours, in no paper: small enough for a laptop's processor.
    "resformer_nano": ResFormerConfig(dim=128, depth=6, heads=2, patch_size=8),
}
