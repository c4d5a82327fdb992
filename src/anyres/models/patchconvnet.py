"""PatchConvNet: a column of convolutions at one resolution, then one attention layer that pools, and shows where.

Touvron, Cord, El-Nouby, Bojanowski, Joulin, Synnaeve, Jégou: "Augmenting Convolutional networks with attention-based
aggregation", arXiv:2112.13692. Top-1 on ImageNet-1k (official repository; 21k: pre-trained on ImageNet-21k):

    =========  ==========  ==========  =====  ========  ========  ========
    model      parameters  MACs (224)    224  21k, 224  21k, 384  21k, 512
    =========  ==========  ==========  =====  ========  ========  ========
    S60            25.2 M       4.0 G   82.1      83.5      84.9      85.4
    S120           47.7 M       7.5 G   83.2
    B60            99.4 M      15.8 G   83.5      85.4      86.5
    B120          188.6 M      29.8 G   84.1      86.0      86.9
    L60           176.0 M      28.0 G
    L120          334.3 M      52.8 G
    S60_multi      25.6 M       5.3 G   82.0
    =========  ==========  ==========  =====  ========  ========  ========

Four strided convolutions make patches of 16 pixels; blocks of 1x1, depthwise 3x3 and squeeze-excite keep their grid;
one cross-attention from a class token to the patches pools them, and its weights are a map of what was looked at
(``PatchConvNet.attention_map``). In the multi-class variant every class has its own token, map and linear classifier.
There is no position embedding. (S60_multi's 82.0 is the fine-tuned file's; from scratch it has 81.1.)

Deviations from the official code, none of which changes a result where that code runs (squares):

* The grid is the stem's own output, ceil(h / 16) x ceil(w / 16); the official code folds its tokens back into a
  square. So every height and width from 1 pixel up works, with nothing padded, cut or resampled.
* Blocks hold tokens, channels last in memory; a 1x1 convolution is a matrix product on them.
* The multi-class variant's classifiers are applied as one product. Its pooled vector is the class tokens end to end,
  k * dim channels; ``reset_classifier`` renews the class tokens with the classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Format, Style, Traits, check_pool, take_indices, timm_cfg
from anyres.ops.convolution import DepthwiseConv2d, StridedConv2d
from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.patch import Grid, to_maps, to_tokens
from anyres.ops.recompute import run_block
from anyres.ops.residual import Branch, StochasticDepth, add_kept


@config
class PatchConvNetConfig:
    """Width and depth; patches of 16 pixels, the aggregation's MLP ratio 3, the norms' epsilon 1e-6 throughout."""

    dim: int = 384
    """Channels; a multiple of 8."""
    depth: int = 60
    """Blocks of the trunk; one block of aggregation follows."""
    init_scale: float = 1e-6
    """Initial gamma of the residual branches, those of the aggregation too."""
    multi: bool = False
    """One class token and one classifier per class; the tokens attend to the patches alone."""
    in_chans: int = 3
    num_classes: int = 1000
    drop_path: float = 0.0
    """Stochastic depth, the same in every block of the trunk; the aggregation has none."""

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.in_chans) < 1 or self.num_classes < 0:
            raise UserError(f"PatchConvNet's sizes must be positive: {self}")
        if self.dim % 8:
            raise UserError(f"PatchConvNet's dim must be a multiple of 8, not {self.dim}")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path must lie in [0, 1), not {self.drop_path}")


class Stem(nn.Module):
    """Four 3x3 convolutions of stride 2 without bias, GELU between them: image -> tokens of 16x16 pixels."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Sequential(StridedConv2d(in_chans, dim // 8, bias=False)),
            nn.GELU(),
            nn.Sequential(StridedConv2d(dim // 8, dim // 4, bias=False)),
            nn.GELU(),
            nn.Sequential(StridedConv2d(dim // 4, dim // 2, bias=False)),
            nn.GELU(),
            nn.Sequential(StridedConv2d(dim // 2, dim, bias=False)),
        )

    def forward(self, x: Float[Tensor, "b k h w"]) -> tuple[Float[Tensor, "b n c"], Grid]:
        """Returns tokens and their grid (ceil(h / 16), ceil(w / 16))."""
        maps = self.proj(x.contiguous(memory_format=torch.channels_last))
        # Tokens stay as they are in memory through all blocks: channels last, whatever the convolution's output is.
        return to_tokens(maps).contiguous(), (maps.shape[2], maps.shape[3])


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, with weights (c2, c, 1, 1), on tokens."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__(channels, channels_out, kernel_size=1)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c2"]:
        return F.linear(x, self.weight.flatten(1), self.bias)


class SqueezeExcite(nn.Module):
    """x * sigmoid(expand(ReLU(reduce(mean of x)))), with a quarter of the channels between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_reduce = Pointwise(dim, dim // 4)
        self.conv_expand = Pointwise(dim // 4, dim)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        gate: Tensor = self.conv_expand(self.conv_reduce(x.mean(dim=1, keepdim=True)).relu())
        return x * gate.sigmoid()


class Convolutions(nn.Module):
    """The trunk's one branch (``attn.qkv_pos`` officially): 1x1, GELU, depthwise 3x3, GELU, squeeze-excite, 1x1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv_pos = nn.ModuleList(
            (
                Pointwise(dim, dim),
                nn.GELU(),
                DepthwiseConv2d(dim, 3, padding=1),
                nn.GELU(),
                SqueezeExcite(dim),
                Pointwise(dim, dim),
            )
        )

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        pointwise, gelu, depthwise, gelu_after, excite, project = self.qkv_pos
        maps: Tensor = depthwise(to_maps(gelu(pointwise(x)), grid))
        x = project(excite(gelu_after(to_tokens(maps))))
        return x


class Block(nn.Module):
    """x + DropPath(γ F(LN x)), F the convolutions: a single residual branch."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.empty(dim))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Convolutions(dim)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Float[Tensor, "b n c"], grid: Grid) -> Float[Tensor, "b n c"]:
        if self.drop_path.skips and self.training:
            return add_kept(x, self.branches(grid), self.drop_path)
        for branch in self.branches(grid):
            x = x + self.drop_path(branch(x))
        return x

    def branches(self, grid: Grid) -> tuple[Branch, ...]:
        return (lambda y: self.gamma_1 * self.attn(self.norm1(y), grid),)


class Pooling(nn.Module):
    """Class tokens attend, with one head, to the patches and themselves; with ``multi`` to the patches alone.

    It is written out, as the scores are worth looking at: ``id`` passes them through before the softmax, (b, 1, k, m),
    the class tokens' columns first if they are seen. A hook on it sees them, or changes them.
    """

    def __init__(self, dim: int, multi: bool) -> None:
        super().__init__()
        self.multi = multi
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.id = nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def seen(self, classes: Float[Tensor, "1 k c"], patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b m c"]:
        """What is attended to: m = k + n, or n."""
        return patches if self.multi else torch.cat((classes.expand(patches.shape[0], -1, -1), patches), dim=1)

    def weights(self, classes: Float[Tensor, "1 k c"], seen: Float[Tensor, "b m c"]) -> Float[Tensor, "b k m"]:
        """Attention of each class token to what is seen; rows sum to one."""
        query = self.q(classes) * classes.shape[-1] ** -0.5  # once for the batch: no image has entered yet
        scores: Tensor = self.id((query @ self.k(seen).mT)[:, None])
        weights: Tensor = scores[:, 0].softmax(dim=-1)
        return weights

    def forward(self, classes: Float[Tensor, "1 k c"], patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b k c"]:
        seen = self.seen(classes, patches)
        x: Tensor = self.proj(self.weights(classes, seen) @ self.v(seen))
        return x


class Aggregation(nn.Module):
    """Class tokens + γ₁ Pooling(LN of them and of the patches), then + γ₂ Mlp(LN); the patches stay as they are."""

    def __init__(self, dim: int, multi: bool) -> None:
        super().__init__()
        self.gamma_1 = nn.Parameter(torch.empty(dim))
        self.gamma_2 = nn.Parameter(torch.empty(dim))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Pooling(dim, multi)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 3 * dim)

    def forward(self, classes: Float[Tensor, "1 k c"], patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b k c"]:
        x: Tensor = classes + self.gamma_1 * self.attn(self.norm1(classes), self.norm1(patches))
        x = x + self.gamma_2 * self.mlp(self.norm2(x))
        return x


class ClassifierPerToken(nn.ModuleList):
    """A linear layer per class token: tokens end to end (b, k * c) -> logits (b, k), as one product."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(nn.Linear(dim, 1) for _ in range(num_classes))

    def forward(self, x: Float[Tensor, "b kc"]) -> Float[Tensor, "b k"]:
        linears = cast(list[nn.Linear], list(self))
        weight = torch.cat([linear.weight for linear in linears])  # k times (1, c) -> (k, c)
        bias = torch.cat([linear.bias for linear in linears])
        tokens = x.reshape(x.shape[0], *weight.shape)  # (b, k * c) -> (b, k, c)
        return torch.einsum("bkc,kc->bk", tokens, weight) + bias


class PatchConvNet(Backbone):
    """Image (b, k, h, w) of any height and width -> logits (b, num_classes). See the module's docstring."""

    traits = Traits(
        attention=(Pooling,),
        fold="anyres.deploy.fuse.patchconvnet:FoldedPatchConvNet",
        look="anyres.maps.readers:pooling",
    )

    def __init__(self, config: PatchConvNetConfig) -> None:
        super().__init__()
        dim, depth = config.dim, config.depth
        self.config = config
        self.grad_checkpointing = False
        self.feature_info = [{"num_chs": dim, "reduction": 16, "module": f"blocks.{i}"} for i in range(depth)]
        self.pretrained_cfg = preprocessing(config)

        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.patch_embed = Stem(config.in_chans, dim)
        self.blocks = nn.ModuleList(Block(dim, config.drop_path) for _ in range(depth))
        self.blocks_token_only = nn.ModuleList((Aggregation(dim, config.multi),))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.set_classes(config.num_classes)
        self.init_weights()

    def set_classes(self, num_classes: int) -> None:
        """The head, not yet drawn, and with ``multi`` the class tokens: as many as classes, but always one."""
        dim, multi = self.config.dim, self.config.multi
        tokens = max(num_classes, 1) if multi else 1
        self.num_classes = num_classes
        self.num_features = tokens * dim
        if multi:
            self.cls_token = nn.Parameter(self.norm.weight.new_empty(1, tokens, dim))
        self.head: nn.Module = nn.Identity()
        if num_classes:
            head = ClassifierPerToken(dim, num_classes) if multi else nn.Linear(dim, num_classes)
            self.head = head.to(self.norm.weight)

    def init_weights(self) -> None:
        """Linears and class token: truncated normal 0.02, biases 0. Convolutions: PyTorch's default.
        γ: ``init_scale``."""
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, Block | Aggregation):
                nn.init.constant_(module.gamma_1, self.config.init_scale)
                if isinstance(module, Aggregation):
                    nn.init.constant_(module.gamma_2, self.config.init_scale)

    def run_block(self, block: nn.Module, x: Tensor, other: Grid | Tensor) -> Tensor:
        """One block, its activations stored or recomputed."""
        return run_block(block, x, other, recompute=self.grad_checkpointing and self.training)

    def trunk(self, x: Float[Tensor, "b k h w"], keep: Sequence[int] = ()) -> tuple[Tensor, Grid, dict[int, Tensor]]:
        """Patch tokens (b, n, c) after the last block, their grid, and those after each of the blocks ``keep``."""
        tokens, grid = self.patch_embed(x)
        kept: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            tokens = self.run_block(block, tokens, grid)
            if i in keep:
                kept[i] = tokens
        return tokens, grid, kept

    def aggregate(self, patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b t c"]:
        """The trunk's tokens -> class tokens that have looked at them, and they themselves; all normalised."""
        classes = self.run_block(self.blocks_token_only[0], self.cls_token, patches)
        normed: Tensor = self.norm(torch.cat((classes, patches), dim=1))
        return normed

    def forward_features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b t c"]:
        """Image -> normalised tokens, the class token first (with ``multi`` one per class), then the patches'."""
        return self.aggregate(self.trunk(x)[0])

    def forward_head(self, x: Float[Tensor, "b t c"], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Tokens -> logits; with ``pre_logits`` the normalised class tokens end to end."""
        x = x[:, : self.cls_token.shape[1]].flatten(1)  # (b, k, c) -> (b, k * c); k = 1 without ``multi``
        return x if pre_logits else self.get_classifier()(x)

    def patch_tokens(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b n c"]:
        """The normalised tokens without class tokens."""
        return x[:, self.cls_token.shape[1] :]

    def forward(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b _"]:
        """Image -> logits."""
        return self.forward_head(self.forward_features(x))

    def attention_map(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b t rows columns"]:
        """What the class token looks at: its attention to each patch, (b, 1, ceil(h / 16), ceil(w / 16)).

        With ``multi`` one map per class, (b, num_classes, ...), each summing to one; else the rest to one is the class
        token's attention to itself.
        """
        tokens, grid, _ = self.trunk(x)
        block = cast(Aggregation, self.blocks_token_only[0])
        pooling, classes, patches = block.attn, block.norm1(self.cls_token), block.norm1(tokens)
        weights = pooling.weights(classes, pooling.seen(classes, patches))[:, :, -tokens.shape[1] :]
        return weights.reshape(*weights.shape[:2], *grid)  # (b, t, n) -> (b, t, h, w)

    def forward_intermediates(
        self,
        x: Float[Tensor, "b k h w"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
        output_fmt: Format = "NCHW",
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The trunk's tokens after each of the blocks ``indices``, as maps or tokens; ``norm`` fits them all."""
        wanted = take_indices(len(self.blocks), indices)
        tokens, grid, kept = self.trunk(x, wanted)
        chosen = [self.norm(kept[i]) if norm else kept[i] for i in wanted]
        intermediates = [to_maps(patches, grid) for patches in chosen] if output_fmt == "NCHW" else chosen
        return intermediates if intermediates_only else (self.aggregate(tokens), intermediates)

    def become_bottom_up(self, stages: Sequence[int], style: Style) -> None:  # noqa: ARG002
        """Without all that makes or reads the class token."""
        del self.head, self.cls_token, self.blocks_token_only

    def get_classifier(self) -> nn.Module:
        """Pooled vector (b, num_features) -> logits (b, k)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head of ``num_classes`` (0: none), and with ``multi`` fresh class tokens; pooling is the token."""
        check_pool(global_pool, "token", "PatchConvNet")
        self.set_classes(num_classes)
        if self.config.multi:
            trunc_normal_(self.cls_token, std=0.02)
        for module in self.head.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002
        """Layers for layer-wise decay: stem, blocks, aggregation with the class token it starts from, norm; head."""
        return {
            "stem": r"^patch_embed",
            "blocks": [
                (r"^blocks\.(\d+)", None),
                (r"^blocks_token_only|^cls_token", (self.config.depth,)),
                (r"^norm", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """The class token, or tokens."""
        return {"cls_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass."""
        self.grad_checkpointing = enable

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The official names are ours and no tensor knows a grid: nothing to do."""
        return state


def preprocessing(config: PatchConvNetConfig) -> dict[str, Any]:
    """timm's pretrained_cfg. The official code states no crop; the group's later recipes take the whole short side."""
    return timm_cfg(
        config.num_classes,
        (config.in_chans, 224, 224),
        1.0,
        "patch_embed.proj.0.0",
        ("head", "cls_token") if config.multi else "head",
    )


Config, Model = PatchConvNetConfig, PatchConvNet
VARIANTS: dict[str, PatchConvNetConfig] = {
    "S60": PatchConvNetConfig(init_scale=1e-4),
    "S120": PatchConvNetConfig(depth=120),
    "B60": PatchConvNetConfig(dim=768),
    "B120": PatchConvNetConfig(dim=768, depth=120),
    "L60": PatchConvNetConfig(dim=1024),
    "L120": PatchConvNetConfig(dim=1024, depth=120),
    "S60_multi": PatchConvNetConfig(init_scale=1e-4, multi=True),
}
