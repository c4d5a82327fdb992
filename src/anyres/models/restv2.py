"""ResTv2: a four-stage transformer whose attention looks at a shrunken map and restores what shrinking lost.

Zhang, Yang: "ResT V2: Simpler, Faster and Stronger", NeurIPS 2022, arXiv:2204.07366.
Table 2, top-1 on ImageNet-1k:

    =============  ==========  ==========  =====  =====
    model          parameters  MACs (224)    224    384
    restv2_tiny        30.4 M      4.1 G    82.3   83.7
    restv2_small       41.2 M      6.0 G    83.2   84.5
    restv2_base        56.0 M      7.9 G    83.7   85.1
    restv2_large       86.5 M     13.8 G    84.2   85.4
    =============  ==========  ==========  =====  =====

Stages of strides 4, 8, 16, 32. In each, EMSAv2 attends from every token to a map shrunk by a strided depthwise
convolution, and adds an upsampled copy of the values: a grouped convolution and a pixel shuffle (section 3.2).
Positions come from pixel attention, x * sigmoid(depthwise(x)), after every downsampling.

Deviations from the official code, none of which changes a result where that code runs (sides that are multiples of 32):

* The grid is the convolution's own output, which rounds up; the official code passes on h // 2 and fails when that is
  another number.
* The shuffled value map covers r * ceil(h / r) rows, and is cropped to the real h (and columns alike). So every size
  from 1x1 pixel up works. (In training, batch norm wants more than one value per channel: one image of at most
  4x4 px will not do.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Style, Traits, check_pool, take_indices, timm_cfg
from anyres.ops.attention import attend_plus
from anyres.ops.convolution import DepthwiseConv2d, StridedConv2d
from anyres.ops.head import new_head
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, crop, to_maps, to_tokens
from anyres.ops.recompute import run_block
from anyres.ops.residual import Branch, StochasticDepth, add_kept, add_norm

Four = tuple[int, int, int, int]
"""One number per stage."""


@config
class ResTv2Config:
    """Widths and depths (paper, table 1); the MLP ratio is 4 and the norms' epsilon 1e-6 throughout."""

    dims: Four = (96, 192, 384, 768)
    """Channels of the stages; multiples of ``heads``, the first even."""
    depths: Four = (1, 2, 6, 2)
    heads: Four = (1, 2, 4, 8)
    reductions: Four = (8, 4, 2, 1)
    """By how much a stage shrinks its map for keys and values (``sr`` in the official code)."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth of the last block; blocks before it take less, linearly from 0."""

    def __post_init__(self) -> None:
        numbers = (*self.dims, *self.depths, *self.heads, *self.reductions, self.in_chans)
        if min(numbers) < 1 or self.num_classes < 0:
            raise UserError(f"ResTv2's sizes must be positive: {self}")
        if any(dim % heads for dim, heads in zip(self.dims, self.heads, strict=True)) or self.dims[0] % 2:
            raise UserError(f"ResTv2's dims {self.dims} must be multiples of its heads {self.heads}, the first even")
        if any(reduction % 2 for reduction in self.reductions if reduction > 1):
            raise UserError(f"ResTv2's reductions {self.reductions} must be 1 or even")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path must lie in [0, 1), not {self.drop_path}")


class PixelAttention(nn.Module):
    """Position encoding: x * sigmoid(depthwise 3x3 of x)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pa_conv = DepthwiseConv2d(dim, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        gate: Tensor = self.pa_conv(x)
        return x * gate.sigmoid()


class Stem(nn.Module):
    """Two strided 3x3 convolutions, each with batch norm and ReLU, and a 1x1: image -> tokens of 4x4 pixels."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            StridedConv2d(in_chans, dim // 2, bias=False),
            nn.BatchNorm2d(dim // 2),
            nn.ReLU(),
            StridedConv2d(dim // 2, dim, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, kernel_size=1),
        )
        self.pos = PixelAttention(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        """Returns tokens and their grid (ceil(h / 4), ceil(w / 4))."""
        maps = self.pos(self.proj(x))
        return self.norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])


class PatchEmbed(nn.Module):
    """Between stages: a strided 3x3 convolution, pixel attention and LayerNorm, at half the grid."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.proj = StridedConv2d(dim_in, dim)
        self.pos = PixelAttention(dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        """Returns tokens and their grid (ceil(h / 2), ceil(w / 2))."""
        maps = self.pos(self.proj(x))
        return self.norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])


class Attention(nn.Module):
    """EMSAv2 (section 3.2): softmax attention on keys and values of a map shrunk r times, plus the values upsampled.

    Shrinking: depthwise convolution of kernel r + 1, stride r, then LayerNorm (none for r = 1).
    Upsampling: grouped 3x3 convolution c -> r²c, pixel shuffle, crop to the grid, LayerNorm (also for r = 1).
    """

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        if reduction > 1:
            self.sr = DepthwiseConv2d(dim, reduction + 1, stride=reduction, padding=reduction // 2)
            self.sr_norm = nn.LayerNorm(dim, eps=1e-6)
        self.up = nn.Sequential(
            DepthwiseConv2d(dim, 3, padding=1, multiplier=reduction**2),
            nn.PixelShuffle(reduction),
        )
        self.up_norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        small, small_grid = self.shrink(x, grid)
        keys, values = self.kv(small).chunk(2, dim=2)  # each (b, m, c), channel = head * d + j
        added = self.upsample(values, small_grid, grid)
        query, key, value = (self.split(part) for part in (self.q(x), keys, values))
        x = self.proj(attend_plus(query, key, value, added, self.up_norm))
        return x

    def split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b g n d"]:
        """Channels into heads."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b, n, c) -> (b, n, g, d) -> (b, g, n, d)

    def shrink(self, x: Float[Tensor, "b n c"], grid: Grid) -> tuple[Float[Tensor, "b m c"], Grid]:
        """Tokens of the map shrunk r times, and its grid (ceil(h / r), ceil(w / r))."""
        if self.reduction == 1:
            return x, grid
        maps = self.sr(to_maps(x, grid))
        return self.sr_norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])

    def upsample(self, values: Float[Tensor, "b m c"], small: Grid, grid: Grid) -> Float[Tensor, "b n c"]:
        """The values back at full resolution: r * ceil(h / r) rows, cropped to h, and columns alike."""
        maps: Tensor = self.up(to_maps(values, small))
        return to_tokens(crop(maps, grid))


class Block(nn.Module):
    """Pre-norm: x + DropPath(Attention(LN x)), then x + DropPath(Mlp(LN x)), with independent masks."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        if self.drop_path.skips and self.training:
            return add_kept(x, self.branches(grid), self.drop_path)
        x, normed = add_norm(x, self.attn(self.norm1(x), grid), None, self.drop_path, self.norm2)
        x = x + self.drop_path(self.mlp(normed))
        return x

    def branches(self, grid: Grid) -> tuple[Branch, ...]:
        return lambda y: self.attn(self.norm1(y), grid), lambda y: self.mlp(self.norm2(y))


_DROP_PATH = {"restv2_tiny": 0.1, "restv2_small": 0.2, "restv2_base": 0.3, "restv2_large": 0.5}
_STYLES: tuple[Style, ...] = ("detection", "segmentation")
DENSE: dict[tuple[str, str], dict[str, Any]] = {
    (style, name): {"drop_path": rate} for style in _STYLES for name, rate in _DROP_PATH.items()
}
"""The official dense backbones. Detection's large one has other depths and heads than the classifier."""
DENSE["detection", "restv2_large"] |= {"depths": (2, 3, 16, 3), "heads": (1, 2, 4, 8)}


class ResTv2(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(
        attention=(Attention,),
        warp_from=384,
        dense=DENSE,
        fold="anyres.deploy.fuse.restv2:FoldedResTv2",
        look="anyres.maps.readers:emsa_plus",
    )

    def __init__(self, config: ResTv2Config) -> None:
        super().__init__()
        dims = config.dims
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = dims[3]
        self.grad_checkpointing = False
        self.feature_info = [{"num_chs": dims[i], "reduction": 4 * 2**i, "module": f"stage{i + 1}"} for i in range(4)]
        self.pretrained_cfg = preprocessing(config)

        total = sum(config.depths)
        rates = [config.drop_path * i / max(total - 1, 1) for i in range(total)]

        def stage(i: int) -> nn.ModuleList:
            first = sum(config.depths[:i])
            return nn.ModuleList(
                Block(dims[i], config.heads[i], config.reductions[i], rates[first + j]) for j in range(config.depths[i])
            )

        self.stem = Stem(config.in_chans, dims[0])
        self.stage1 = stage(0)
        self.patch_2 = PatchEmbed(dims[0], dims[1])
        self.stage2 = stage(1)
        self.patch_3 = PatchEmbed(dims[1], dims[2])
        self.stage3 = stage(2)
        self.patch_4 = PatchEmbed(dims[2], dims[3])
        self.stage4 = stage(3)
        self.norm = nn.LayerNorm(dims[3], eps=1e-6)
        self.head = nn.Linear(dims[3], config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Convolutions and linears: truncated normal 0.02, biases 0. Norms: one and zero, running statistics too."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                module.reset_parameters()

    def stages(self, x: Float[Tensor, "b k h w"]) -> list[tuple[Float[Tensor, "b n c"], Grid]]:
        """Tokens and grid at the end of each of the four stages, before the final norm."""
        steps = (
            (self.stem, self.stage1),
            (self.patch_2, self.stage2),
            (self.patch_3, self.stage3),
            (self.patch_4, self.stage4),
        )
        ends = []
        for embed, blocks in steps:
            tokens, grid = embed(x)
            for block in blocks:
                tokens = run_block(block, tokens, grid, recompute=self.grad_checkpointing and self.training)
            x = to_maps(tokens, grid)
            ends.append((tokens, grid))
        return ends

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c ho wo"]:
        """Image -> the last stage's map after the final norm, at stride 32 (rounded up)."""
        tokens, grid = self.stages(x)[-1]
        return to_maps(self.norm(tokens), grid)

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Map -> logits; with ``pre_logits`` its average over all positions."""
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.get_classifier()(x)

    def patch_tokens(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        """The map's tokens in row-major order."""
        return to_tokens(x)

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
        """The stages' ends at ``indices``, as maps or tokens; ``norm`` fits the last stage alone."""
        wanted = take_indices(4, indices)
        ends = self.stages(x)
        last, last_grid = ends[-1]
        normed: Tensor = self.norm(last)
        if norm:
            ends[-1] = (normed, last_grid)
        intermediates = [to_maps(*ends[i]) if output_fmt == "NCHW" else ends[i][0] for i in wanted]
        return intermediates if intermediates_only else (to_maps(normed, last_grid), intermediates)

    def become_bottom_up(self, stages: Sequence[int], style: Style) -> None:
        """As in the official code: ``norm_1`` to ``norm_4`` stand on the outputs asked for, and the trunk goes on
        without; the classifier's ``norm`` is gone. Detection has each in a ``Sequential`` of one: ``norm_1.0``."""
        del self.head, self.norm
        like = self.stem.norm.weight
        for i in stages:
            norm = nn.LayerNorm(self.config.dims[i - 1], eps=1e-6).to(like)
            self.add_module(f"norm_{i}", nn.Sequential(norm) if style == "detection" else norm)

    def stage_maps(self, x: Float[Tensor, "b k h w"], indices: Sequence[int]) -> list[Tensor]:
        """The stages' maps, each after its norm."""
        ends = self.stages(x)
        return [to_maps(self.get_submodule(f"norm_{i + 1}")(ends[i][0]), ends[i][1]) for i in indices]

    def get_classifier(self) -> nn.Module:
        """Pooled vector (b, c) -> logits (b, k)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none); pooling is the average."""
        check_pool(global_pool, "avg", "ResTv2")
        self.num_classes = num_classes
        self.head = new_head(self.num_features, num_classes, like=self.norm.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay: stem, stages (coarse) or blocks and downsamplings, and the norm with the head.

        Finely, the published code's numbering: 0 to the sum of the depths + 4.
        """
        blocks = [(r"^patch_(\d+)", None), (r"^stage(\d+)\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^(?:patch_|stage)(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """None by name."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The official names are ours and no tensor knows a grid: nothing to do."""
        return state


def preprocessing(config: ResTv2Config) -> dict[str, Any]:
    """timm's pretrained_cfg; the official evaluation resizes the short side to S and crops S."""
    return timm_cfg(config.num_classes, (config.in_chans, 224, 224), 1.0, "stem.proj.0")


Config, Model = ResTv2Config, ResTv2
VARIANTS: dict[str, ResTv2Config] = {
    "restv2_tiny": ResTv2Config(),
    "restv2_small": ResTv2Config(depths=(1, 2, 12, 2)),
    "restv2_base": ResTv2Config(depths=(1, 3, 16, 3)),
    "restv2_large": ResTv2Config(dims=(128, 256, 512, 1024), depths=(2, 3, 16, 2), heads=(2, 4, 8, 16)),
    # Ours, in no paper: small enough for a laptop's processor.
    "restv2_nano": ResTv2Config(dims=(32, 64, 128, 256), depths=(1, 1, 2, 1)),
}
