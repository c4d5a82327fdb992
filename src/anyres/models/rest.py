"""ResT (v1): a four-stage transformer whose attention looks at a shrunken map and lets its heads talk.

Zhang, Yang: "ResT: An Efficient Transformer for Visual Recognition", NeurIPS 2021, arXiv:2105.13677.
Top-1 on ImageNet-1k at 224 px, cropped at 0.875 (the repository's table):

    ==========  ==========  ==========  =====
    model       parameters  MACs (224)  top-1
    rest_lite       10.5 M      1.5 G    77.2
    rest_small      13.7 M      2.1 G    79.6
    rest_base       30.3 M      4.6 G    81.6
    rest_large      51.7 M      8.4 G    83.6
    ==========  ==========  ==========  =====

(MACs as measured, attention included; the table prints 1.4, 1.9, 4.3 and 7.9, which no common count gives.)

Stages of strides 4, 8, 16, 32. In each, EMSA attends from every token to a map shrunk by a strided depthwise
convolution. Where there are several heads, a 1x1 convolution mixes their scores before the softmax, and an instance
norm over each head's plane of queries by keys follows it. Positions come from pixel attention,
x * sigmoid(depthwise(x)), after every downsampling.

As the instance norm's statistics are those of the whole plane, a token's answer depends on every query of its image,
padding included. And as it magnifies rounding, float32 logits agree with the official ones to 5e-5 where other families
reach 1e-5, and bf16 costs more than elsewhere.

Deviations from the official code, none of which changes a result where that code runs (sides for which ceil(side / 4)
is a multiple of 8, with more than one token in stage 4):

* The grid is the convolution's own output, which rounds up; the official code passes on h // 2 and fails when that is
  another number. So every size from 1x1 pixel up works. (In training, batch norm wants more than one value per channel:
  one image of at most 32x32 px will not do.)
* The instance norm of a plane of one element is zero, where the official code raises: one token has nothing to attend
  to beside itself. (A plane of one key is zero in the official code as well, as all its weights are 1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Style, Traits, check_pool, take_indices, timm_cfg
from anyres.ops.attention import attend
from anyres.ops.convolution import DepthwiseConv2d, StridedConv2d
from anyres.ops.head import new_head
from anyres.ops.mixed_heads import normed_heads
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, to_maps, to_tokens
from anyres.ops.recompute import run_block
from anyres.ops.residual import Branch, StochasticDepth, add_kept, add_norm

Four = tuple[int, int, int, int]
"""One number per stage."""


@config
class ResTConfig:
    """Widths and depths (paper, table 1); the MLP ratio is 4 and the norms' epsilon 1e-5 throughout."""

    dims: Four = (64, 128, 256, 512)
    """Channels of the stages; multiples of ``heads``, the first even."""
    depths: Four = (2, 2, 2, 2)
    heads: Four = (1, 2, 4, 8)
    """Stages of more than one head mix them, and have the instance norm."""
    reductions: Four = (8, 4, 2, 1)
    """By how much a stage shrinks its map for keys and values (``sr`` in the official code)."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth of the last block; blocks before it take less, linearly from 0."""

    def __post_init__(self) -> None:
        numbers = (*self.dims, *self.depths, *self.heads, *self.reductions, self.in_chans)
        if min(numbers) < 1 or self.num_classes < 0:
            raise UserError(f"ResT's sizes must be positive: {self}")
        if any(dim % heads for dim, heads in zip(self.dims, self.heads, strict=True)) or self.dims[0] % 2:
            raise UserError(f"ResT's dims {self.dims} must be multiples of its heads {self.heads}, the first even")
        if any(reduction % 2 for reduction in self.reductions if reduction > 1):
            raise UserError(f"ResT's reductions {self.reductions} must be 1 or even")
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
    """Three 3x3 convolutions of strides 2, 1, 2, the first two with batch norm and ReLU, then pixel attention."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = StridedConv2d(in_chans, dim // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim // 2, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim // 2)
        self.conv3 = StridedConv2d(dim // 2, dim, bias=False)
        self.pos = PixelAttention(dim)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c ho wo"]:
        """Image -> map of ceil(h / 4) x ceil(w / 4)."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = self.pos(self.conv3(x))
        return x


class PatchEmbed(nn.Module):
    """Between stages: a strided 3x3 convolution, batch norm and pixel attention, at half the grid."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.conv = StridedConv2d(dim_in, dim)
        self.norm = nn.BatchNorm2d(dim)
        self.pos = PixelAttention(dim)

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c ho wo"]:
        """Map -> map of ceil(h / 2) x ceil(w / 2)."""
        x = self.pos(self.norm(self.conv(x)))
        return x


class Attention(nn.Module):
    """EMSA (section 3.2): softmax attention on keys and values of a map shrunk r times.

    Shrinking: depthwise convolution of kernel r + 1, stride r, then LayerNorm (none for r = 1). With several heads
    their scores are mixed before the softmax, and normalised over (queries, keys) after it: no affine, no running
    statistics.
    """

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        if reduction > 1:
            self.sr = DepthwiseConv2d(dim, reduction + 1, stride=reduction, padding=reduction // 2)
            self.sr_norm = nn.LayerNorm(dim)
        if heads > 1:
            self.transform_conv = nn.Conv2d(heads, heads, kernel_size=1)  # as one product: anyres.ops.mixed_heads
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        keys, values = self.kv(self.shrink(x, grid)).chunk(2, dim=2)  # each (b, m, c), channel = head * d + j
        mix = attend if self.heads == 1 else self.attend_mixed
        x = self.proj(mix(self.split(self.q(x)), self.split(keys), self.split(values)))
        return x

    def split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b g n d"]:
        """Channels into heads."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b, n, c) -> (b, n, g, d) -> (b, g, n, d)

    def shrink(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b m c"]:
        """Tokens of the map shrunk r times, of ceil(h / r) x ceil(w / r)."""
        if self.reduction == 1:
            return x
        x = self.sr_norm(to_tokens(self.sr(to_maps(x, grid))))
        return x

    def attend_mixed(
        self, query: Float[Tensor, "b g n d"], key: Float[Tensor, "b g m d"], value: Float[Tensor, "b g m d"]
    ) -> Float[Tensor, "b n c"]:
        """InstanceNorm(softmax(mix(Q Kᵀ / sqrt(d)))) V, the heads concatenated."""
        mixing = self.transform_conv
        return normed_heads(query * query.shape[-1] ** -0.5, key, value, mixing.weight.flatten(1), mixing.bias)


class Block(nn.Module):
    """Pre-norm: x + DropPath(Attention(LN x)), then x + DropPath(Mlp(LN x)), with independent masks."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim)
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


DENSE_DROP_PATH = {"rest_lite": 0.1, "rest_small": 0.1, "rest_base": 0.2, "rest_large": 0.2}
"""Stochastic depth of the official detection backbones."""


class ResT(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(
        attention=(Attention,),
        warp_from=384,
        dense={("detection", name): {"drop_path": rate} for name, rate in DENSE_DROP_PATH.items()},
        fold="anyres.deploy.fuse.rest:FoldedResT",
        look="anyres.maps.readers:emsa",
    )

    def __init__(self, config: ResTConfig) -> None:
        super().__init__()
        dims = config.dims
        self.config = config
        self.num_classes = config.num_classes
        self.num_features = dims[3]
        self.grad_checkpointing = False
        self.norms_between: tuple[int, ...] = ()
        """The stages, from 1, whose ends a norm of their own changes for all that follows (``become_bottom_up``)."""
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
        self.patch_embed_2 = PatchEmbed(dims[0], dims[1])
        self.stage2 = stage(1)
        self.patch_embed_3 = PatchEmbed(dims[1], dims[2])
        self.stage3 = stage(2)
        self.patch_embed_4 = PatchEmbed(dims[2], dims[3])
        self.stage4 = stage(3)
        self.norm = nn.LayerNorm(dims[3])
        self.head = nn.Linear(dims[3], config.num_classes) if config.num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Weights of convolutions and linears: truncated normal 0.02. Biases: linears' 0, convolutions' PyTorch's.

        Norms: one and zero, running statistics too.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d):
                module.reset_parameters()
            if isinstance(module, nn.Linear | nn.Conv2d):
                trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def stages(self, x: Float[Tensor, "b k h w"]) -> list[tuple[Float[Tensor, "b n c"], Grid]]:
        """Tokens and grid at the end of each of the four stages, before the final norm."""
        steps = (
            (self.stem, self.stage1),
            (self.patch_embed_2, self.stage2),
            (self.patch_embed_3, self.stage3),
            (self.patch_embed_4, self.stage4),
        )
        ends = []
        for i, (embed, blocks) in enumerate(steps, start=1):
            x = embed(x)
            tokens, grid = to_tokens(x), (x.shape[2], x.shape[3])
            for block in blocks:
                tokens = run_block(block, tokens, grid, recompute=self.grad_checkpointing and self.training)
            if i in self.norms_between:
                tokens = self.get_submodule(f"norm{i}")(tokens)
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

    def become_bottom_up(self, stages: Sequence[int], style: Style) -> None:  # noqa: ARG002
        """As in the official detection code: ``norm1`` to ``norm3`` of the stages asked for stand *between* stages, so
        the same weights give other maps where stage 1 is asked for (Mask R-CNN) and where not (RetinaNet). Stage 4 has
        the classifier's ``norm``. There is no official segmentation code; it is the same here."""
        del self.head
        self.norms_between = tuple(i for i in stages if i < 4)
        for i in self.norms_between:
            self.add_module(f"norm{i}", nn.LayerNorm(self.config.dims[i - 1]).to(self.norm.weight))

    def stage_maps(self, x: Float[Tensor, "b k h w"], indices: Sequence[int]) -> list[Tensor]:
        """The stages' maps after their norms."""
        ends = self.stages(x)
        last, grid = ends[-1]
        ends[-1] = (self.norm(last), grid)
        return [to_maps(*ends[i]) for i in indices]

    def get_classifier(self) -> nn.Module:
        """Pooled vector (b, c) -> logits (b, k)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none); pooling is the average."""
        check_pool(global_pool, "avg", "ResT")
        self.num_classes = num_classes
        self.head = new_head(self.num_features, num_classes, like=self.norm.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay: stem, stages (coarse) or blocks and downsamplings, and the norm with the head.

        Finely, the published code's numbering: 0 to the sum of the depths + 4.
        """
        blocks = [(r"^patch_embed_(\d+)", None), (r"^stage(\d+)\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^(?:patch_embed_|stage)(\d+)" if coarse else blocks}

    def no_weight_decay(self) -> set[str]:
        """None by name."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The official names are ours, timm has no ResT, and no tensor knows a grid: nothing to do."""
        return state


def preprocessing(config: ResTConfig) -> dict[str, Any]:
    """timm's pretrained_cfg.

    The published numbers were measured at crop 0.875; the official model says 0.9 and today's script, written for v2,
    takes 1.0.
    """
    return timm_cfg(config.num_classes, (config.in_chans, 224, 224), 0.875, "stem.conv1")


Config, Model = ResTConfig, ResT
VARIANTS: dict[str, ResTConfig] = {
    "rest_lite": ResTConfig(),
    "rest_small": ResTConfig(depths=(2, 2, 6, 2)),
    "rest_base": ResTConfig(dims=(96, 192, 384, 768), depths=(2, 2, 6, 2)),
    "rest_large": ResTConfig(dims=(96, 192, 384, 768), depths=(2, 2, 18, 2)),
}
