"""DINO: the vision transformer of self-distillation without labels, and the projection head it is trained with.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: "Emerging Properties in Self-Supervised Vision Transformers",
ICCV 2021, arXiv:2104.14294. Table 2, top-1 on ImageNet-1k of the frozen features:

    ===========  ==========  ==========  ====  ======
    model        parameters  MACs (224)  k-NN  linear
    dino_vits16      21.7 M       4.6 G  74.5    77.0
    dino_vits8       21.7 M      22.4 G  78.3    79.7
    dino_vitb16      85.8 M      17.6 G  76.1    78.2
    dino_vitb8       85.8 M      78.1 G  77.4    80.1
    ===========  ==========  ==========  ====  ======

A ViT with one class token and a learned position table, headless by default: the answer is the normalised class token.
Training crops have two sizes, so the table is resampled to the image's grid, by a rule of its own
(``position_matrix``).

Deviations from the official code, none of which changes the class token where both sides are multiples of the patch:

* A side that is no multiple of the patch is padded with zeros on the right or at the bottom. Official code cuts the
  rest off, and fails below one patch.
* The stored table is used as it is on its own grid, of any shape; official grids are square, and there alone it is.
* With ``num_classes`` the head is applied to the class token; official code builds it and never calls it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Traits, check_pool, is_table, shape_in_timm, take_indices, timm_cfg
from anyres.ops.attention import SelfAttention
from anyres.ops.head import new_head
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, PatchEmbed, grid_of, to_maps
from anyres.ops.recompute import run_block
from anyres.ops.residual import Branch, StochasticDepth, add_kept, add_norm


@config
class DINOConfig:
    """Widths of the ViTs; the MLP ratio is 4 and the norms' epsilon 1e-6 throughout."""

    dim: int = 384
    """Channels c; a multiple of ``heads``."""
    depth: int = 12
    heads: int = 6
    patch_size: int = 16
    """Side of a token in pixels, kernel and stride of the patch convolution."""
    img_size: int | tuple[int, int] = 224
    """Pixels, a side or (height, width), of the grid the position table is stored on."""
    in_chans: int = 3
    num_classes: int = 0
    """0: no classifier, the answer is the normalised class token."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; blocks before it take less, linearly from 0."""

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.heads, self.patch_size, self.in_chans, *self.image)
        if min(sizes) < 1 or self.num_classes < 0:
            raise UserError(f"DINO's sizes must be positive: {self}")
        if self.dim % self.heads:
            raise UserError(f"DINO's dim ({self.dim}) must be a multiple of its heads ({self.heads})")
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


def position_matrix(old: int, new: int, home: Bool[Tensor, ""], like: Tensor) -> Float[Tensor, "new old"]:
    """The official resampling of a position axis from ``old`` to ``new`` entries, as a matrix whose rows sum to one.

    It is ``F.interpolate(mode="bicubic", scale_factor=(new + 0.1) / old)``: the 0.1, put there against rounding, also
    enters the coordinates, so entry i is read at (i + 1/2) old / (new + 0.1) - 1/2, even where ``new`` is ``old``. The
    cubic is PyTorch's (a = -3/4), not stretched when shrinking; taps outside are those of the border. Where ``home``
    holds, entry i is read at i, which makes an exact identity of equal lengths. Device as ``like``; at least float32.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    index = torch.arange(new, device=like.device, dtype=dtype)
    centres = torch.where(home, index, (index + 0.5) * (old / (new + 0.1)) - 0.5)
    taps = centres.floor()[:, None] + torch.arange(-1, 3, device=like.device, dtype=dtype)  # (new, 4)
    distance = (centres[:, None] - taps).abs()
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    weights = torch.where(distance <= 1, near, far)  # no tap is further than 2
    samples = torch.arange(old, device=like.device, dtype=dtype)
    hits = taps.clamp(0, old - 1)[:, :, None] == samples  # (new, 4, old)
    return (weights[:, :, None] * hits).sum(1)


def resample_positions(table: Float[Tensor, "1 n c"], old: Grid, new: Grid) -> Float[Tensor, "1 m c"]:
    """The patches' part of a position table, carried from the ``old`` grid to the ``new``; itself if they are equal.

    Dtype and device are kept; the arithmetic is at least float32. An exported program cannot branch on its free sizes:
    there the matrices are always applied, and at the stored grid they are exact identities.
    """
    if not torch.compiler.is_exporting() and old == new:
        return table
    rows, columns = (torch.scalar_tensor(side, dtype=torch.int64, device=table.device) for side in new)
    home = (rows == old[0]) & (columns == old[1])
    down, across = position_matrix(old[0], new[0], home, table), position_matrix(old[1], new[1], home, table)
    maps = table.to(down.dtype).reshape(1, *old, -1)  # (1, n, c) -> (1, rows, columns, c)
    maps = torch.einsum("yh,xw,bhwc->byxc", down, across, maps)
    return maps.flatten(1, 2).to(table.dtype)  # (1, rows, columns, c) -> (1, m, c)


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


def _in_timm(model: DINO) -> tuple[str, dict[str, Any]] | None:
    """How timm by itself builds the model."""
    return "vit_tiny_patch16_224", {**shape_in_timm(model.config), "dynamic_img_size": True}


class DINO(Backbone):
    """Image (b, k, h, w) of any height and width -> class token (b, dim), or logits (b, num_classes).

    See the module's docstring.
    """

    traits = Traits(
        attention=(SelfAttention,),
        windows="tokens",
        fold="anyres.deploy.fuse.vit:FoldedViT",
        look="anyres.maps.readers:class_token",
        timm=_in_timm,
    )

    def __init__(self, config: DINOConfig) -> None:
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
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(config.grid), dim))
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size)
        rates = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, config.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Linears, class token and positions: truncated normal 0.02, biases 0. Patch convolution: PyTorch's."""
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d):
                module.reset_parameters()

    def embed(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b t c"], Grid]:
        """Class token and patch tokens, each with its position, and the grid of the patches."""
        tokens, grid = self.patch_embed(x)
        tokens = tokens + resample_positions(self.pos_embed[:, 1:], self.config.grid, grid)
        token = self.cls_token + self.pos_embed[:, :1]
        return torch.cat((token.expand(tokens.shape[0], -1, -1), tokens), dim=1), grid

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
        """Image -> class token, or logits."""
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
        """Class token (b, c) -> logits (b, k); the identity if there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none); pooling is the class token."""
        check_pool(global_pool, "token", "DINO")
        self.num_classes = num_classes
        self.head = new_head(self.num_features, num_classes, like=self.norm.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: embeddings, blocks, norm; head last."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """None by name: the official training decays its class token and position table."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A training checkpoint's projection head is left aside; a table of another square grid is carried to this one.

        The names are official, as timm's are. The table is carried by the official rule, so a model built at another
        size answers there as official code does. Raises UserError for a table of another length without a whole square
        root, since a file does not say on which grid it was.
        """
        state = {key: state[key] for key in state if not key.startswith(("head.mlp.", "head.last_layer."))}
        table = state.get("pos_embed")
        if not is_table(table):
            return state
        return state | {"pos_embed": self.resize_pos_embed(table)}

    def resize_pos_embed(self, table: Float[Tensor, "1 t c"]) -> Float[Tensor, "1 u c"]:
        """The position table of a file, class token first, on this model's grid."""
        n, grid = table.shape[1] - 1, self.config.grid
        if n == math.prod(grid):
            return table
        side = math.isqrt(max(n, 0))
        if n < 1 or side * side != n:
            raise UserError(
                f"pos_embed has {n + 1} rows, no square grid and one for the class token: build the model at the"
                " img_size of the file"
            )
        return torch.cat((table[:, :1], resample_positions(table[:, 1:], (side, side), grid)), dim=1)


class NormedLinear(nn.Module):
    """A linear layer without bias, W = g v / |v| row by row: weight normalisation under its official keys."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1))
        self.weight_v = nn.Parameter(torch.empty(out_dim, dim))

    def forward(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        return F.linear(x, self.weight_g / self.weight_v.norm(dim=1, keepdim=True) * self.weight_v)


class ProjectionHead(nn.Module):
    """DINO's head, student's and teacher's: pooled vectors (b, in_dim) -> prototype scores (b, out_dim).

    ``nlayers`` linear layers (1 or more) with GELU between them, and batch norm if asked, the direction of the result,
    and a weight-normalised layer without bias; ``norm_last_layer`` freezes its lengths at one. It takes the features of
    all crops of a batch at once. Of one layer ``mlp`` is that layer, so that keys are the official ones. Raises
    UserError for less than one.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        *,
        nlayers: int = 3,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        if nlayers < 1:
            raise UserError(f"ProjectionHead: nlayers={nlayers} must be 1 or more")

        def norm() -> list[nn.Module]:
            return [nn.BatchNorm1d(hidden)] if batch_norm else []

        layers: list[nn.Module] = []
        for i in range(nlayers - 1):
            layers += [nn.Linear(hidden if i else in_dim, hidden), *norm(), nn.GELU()]
        last = nn.Linear(hidden if layers else in_dim, bottleneck)
        self.mlp = nn.Sequential(*layers, last) if layers else last
        self.last_layer = NormedLinear(bottleneck, out_dim)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)
        self.init_weights()

    def init_weights(self) -> None:
        """Linears: truncated normal 0.02, biases 0. Last layer: lengths one, directions as PyTorch draws a linear's."""
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm1d):
                module.reset_parameters()
        nn.init.ones_(self.last_layer.weight_g)
        nn.init.kaiming_uniform_(self.last_layer.weight_v, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b k"]:
        scores: Tensor = self.last_layer(F.normalize(self.mlp(x), dim=-1))
        return scores


def preprocessing(config: DINOConfig) -> dict[str, Any]:
    """timm's pretrained_cfg; the official evaluation resizes the short side to 256 and crops 224."""
    return timm_cfg(config.num_classes, (config.in_chans, *config.image), 0.875, "patch_embed.proj")


Config, Model = DINOConfig, DINO
VARIANTS: dict[str, DINOConfig] = {
    "vit_tiny": DINOConfig(dim=192, heads=3),
    "dino_vits16": DINOConfig(),
    "dino_vits8": DINOConfig(patch_size=8),
    "dino_vitb16": DINOConfig(dim=768, heads=12),
    "dino_vitb8": DINOConfig(dim=768, heads=12, patch_size=8),
}
