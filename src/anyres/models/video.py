"""Clips of any height, width and number of frames: divided space-time attention on a plain ViT of images.

Bertasius, Wang, Torresani: "Is Space-Time Attention All You Need for Video Understanding?", ICML 2021,
arXiv:2102.05095 (TimeSformer, divided attention); on ResFormer as in arXiv:2212.00776, section 4.4, which gives top-1
on Kinetics-400 of 8-frame clips (trained at 224, 160 and 128 px):

    =====================  =====  =====  =====  =====  =====
    tested at                 96    128    160    224    288
    TimeSformer            26.28  61.94  70.60  75.54  75.45
    ResFormer-B            70.56  74.33  76.38  77.32  77.56
    =====================  =====  =====  =====  =====  =====

Before each block of the image model every token attends to the tokens at its place in all frames: norm, attention and
one more linear layer, 2,954,496 parameters for 768 channels. ``video/timesformer_resformer_base`` has 121.4 M with 8
frames and 400 classes; no count is published. ``video/average_NAME`` is the image model frame by frame, without time.

The last linear layer of time attention starts at zero. So a fresh model, and one filled with weights of an image model,
answers with the mean over frames of what that image model answers.

Deviations from the paper:

* Each frame keeps its own class token, which attends over time as patches do, and the answer is the mean over frames.
  In the paper there is one, copied into every frame and averaged after each block; then the first point would not hold.
* The table of time is added to what time attention reads, in every block, not once to the tokens: again for that point.
  It begins as a table of sines, is learnt, and is resampled linearly for another number of frames.
* Time attention has no stochastic depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import UserError, config
from anyres.models.contract import Backbone, Network
from anyres.ops.attention import SelfAttention
from anyres.ops.recompute import run_block

_START = r"(?<!\[)\^"
INNER = "backbone."
"""Before the names of the image model's parameters."""


@config
class VideoConfig:
    """What makes a model of clips of an image model."""

    kind: Literal["timesformer", "average"] = "timesformer"
    """Divided space-time attention; or none: the mean over frames of the image model's answers."""
    frames: int = 8
    """Of a clip as it is trained, for which the table of time is made; any other number can be asked."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"a clip has 1 frame or more, not {self.frames}")


def sine_of_time(frames: int, dim: int) -> Float[Tensor, "t c"]:
    """The table of time as it begins: channel pairs of sin and cos of the frame's number, 10000 apart in frequency."""
    position = torch.arange(frames, dtype=torch.float32)[:, None]
    channel = torch.arange(dim, dtype=torch.float32)
    angle = position / 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())


class TimeAttention(nn.Module):
    """x + Linear(Attention(LN x + table)) over the frames, for each place by itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.fc = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b f t c"], table: Float[Tensor, "f c"]) -> Float[Tensor, "b f t c"]:
        b, f, t, c = x.shape
        y = self.norm(x) + table[:, None]
        y = y.transpose(1, 2).reshape(b * t, f, c)  # (b, f, t, c) -> (b, t, f, c) -> (b*t, f, c)
        y = self.fc(self.attn(y)).reshape(b, t, f, c).transpose(1, 2)  # -> (b, f, t, c)
        x = x + y
        return x


class VideoModel(Network):
    """Clips -> logits (b, num_classes). See the module's docstring.

    A clip is (b, k, f, h, w), or (b, f * k, h, w) as batches carry it: the k channels of the first frame, then those of
    the second, and so on. The number of frames f, height and width are read from it.
    """

    def __init__(self, backbone: Backbone, config: VideoConfig) -> None:
        """``backbone``: a plain ViT with its classifier. Raises UserError for any other family."""
        super().__init__()
        if backbone.traits.windows is None:
            raise UserError(
                f"{backbone.called} is no plain ViT, and attention over time is for such: take resformer_*, deit_* or "
                "deit3_*"
            )
        self.config = config
        self.backbone = backbone
        self.num_classes = backbone.num_classes
        self.num_features = backbone.num_features
        self.channels = int(backbone.pretrained_cfg["input_size"][0])
        self.grad_checkpointing = False
        dim, vit = int(backbone.feature_info[0]["num_chs"]), cast(Any, backbone)
        blocks = vit.blocks if config.kind == "timesformer" else ()
        self.time = nn.ModuleList(TimeAttention(dim, vit.blocks[0].attn.heads) for _ in blocks)
        self.time_embed = nn.Parameter(torch.empty(config.frames, dim)) if len(self.time) else None
        inner = backbone.pretrained_cfg
        self.pretrained_cfg = {
            **inner,
            "classifier": _under(inner["classifier"]),
            "first_conv": _under(inner["first_conv"]),
            "architecture": f"video/{config.kind}_{backbone.called}",
        }
        self.init_time()

    def init_time(self) -> None:
        """Draws time attention: Xavier's uniform, the last layer zero; the table as sines.

        From scratch, with the image model's normal of 0.02, narrow models see the order of frames late or never.
        """
        for module in self.time.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for each in self.time:
            assert isinstance(each, TimeAttention)
            nn.init.zeros_(each.fc.weight)
        if self.time_embed is not None:
            with torch.no_grad():
                self.time_embed.copy_(sine_of_time(*self.time_embed.shape))

    def table(self, frames: int) -> Float[Tensor, "f c"]:
        """The table of time for so many frames."""
        assert self.time_embed is not None
        return resample_time(self.time_embed, frames)

    def split(self, x: Float[Tensor, "b ..."]) -> tuple[Float[Tensor, "b_f k h w"], int]:
        """All frames of all clips, one after another, and how many a clip has. Raises UserError for another shape."""
        k = self.channels
        if x.ndim == 5 and x.shape[1] == k:
            x = x.transpose(1, 2)  # (b, k, f, h, w) -> (b, f, k, h, w)
            return x.reshape(-1, *x.shape[2:]), x.shape[1]
        if x.ndim == 4 and x.shape[1] % k == 0:
            frames = x.shape[1] // k
            return x.reshape(-1, k, *x.shape[2:]), frames  # (b, f*k, h, w) -> (b*f, k, h, w)
        raise UserError(
            f"{self.called} takes clips (b, {k}, frames, h, w) or (b, frames * {k}, h, w), not {tuple(x.shape)}"
        )

    def forward_features(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b f t c"]:
        """Clips -> normalized tokens of every frame, the special ones first."""
        pictures, f = self.split(x)
        vit, takes_grid = cast(Any, self.backbone), self.backbone.traits.windows == "grid"
        tokens, grid = vit.embed(pictures)  # (b*f, t, c)
        for i, block in enumerate(vit.blocks):
            if len(self.time):
                tokens = self.over_time(self.time[i], tokens, f)
            tokens = vit.run_block(block, tokens, grid) if takes_grid else vit.run_block(block, tokens)
        normed: Tensor = vit.norm(tokens)
        return normed.reshape(-1, f, *normed.shape[1:])  # (b*f, t, c) -> (b, f, t, c)

    def over_time(self, attention: nn.Module, tokens: Float[Tensor, "b_f t c"], f: int) -> Float[Tensor, "b_f t c"]:
        """Time attention, its activations stored or recomputed."""
        clips = tokens.reshape(-1, f, *tokens.shape[1:])  # (b*f, t, c) -> (b, f, t, c)
        table = self.table(f).to(tokens.dtype)
        return run_block(attention, clips, table, recompute=self.grad_checkpointing and self.training).flatten(0, 1)

    def forward_head(self, x: Float[Tensor, "b f t c"], pre_logits: bool = False) -> Float[Tensor, "b _"]:
        """Tokens -> logits; with ``pre_logits`` the mean over frames of the image model's pooled vector."""
        each = self.backbone.forward_head(x.flatten(0, 1), pre_logits=True)  # (b*f, c)
        pooled = each.reshape(*x.shape[:2], -1).mean(1)
        if pre_logits:
            return pooled
        logits: Tensor = self.get_classifier()(pooled)
        return logits

    def patch_tokens(self, x: Float[Tensor, "b f t c"]) -> Float[Tensor, "b n c"]:
        """The normalized patch tokens of all frames, one frame after another."""
        patches = self.backbone.patch_tokens(x.flatten(0, 1))  # (b*f, n, c)
        return patches.reshape(len(x), -1, patches.shape[2])

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b _"]:
        """Clips -> logits."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The image model's."""
        return self.backbone.get_classifier()

    def check_sizes(self, sizes: Iterable[tuple[int, int]], *, training: bool = False) -> None:
        """Raises UserError for the first (height, width) that the image model refuses."""
        self.backbone.check_sizes(sizes, training=training)

    def attention_modules(self) -> list[nn.Module]:
        """The image model's, and time attention."""
        return [*self.backbone.attention_modules(), *self.time]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The image model's layers; time attention is in its block's."""
        found: dict[str, list[tuple[str, Any]]] = {}
        for name, entry in self.backbone.group_matcher(coarse).items():
            patterns = entry if isinstance(entry, list | tuple) else [(entry, None)]
            found[name] = [(_pattern_under(pattern), suffix) for pattern, suffix in patterns]
        found["stem"].append((r"^time_embed", None))
        found["blocks"].append((r"^time\.(\d+)", None))
        return found

    def no_weight_decay(self) -> set[str]:
        """The image model's own, and the table of time."""
        return {"time_embed", *(f"{INNER}{name}" for name in self.backbone.no_weight_decay())}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks, of time attention too, in the backward pass."""
        self.grad_checkpointing = enable
        self.backbone.set_grad_checkpointing(enable)

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file of a model of clips, or of its image model: then time attention starts as a fresh one's does.

        A file's prefix ``backbone.`` has gone before, as a reader of files takes it away. A table of another number of
        frames is resampled.
        """
        ours = {key: value for key, value in state.items() if key == "time_embed" or key.startswith("time.")}
        image = {key.removeprefix(INNER): value for key, value in state.items() if key not in ours}
        made = {f"{INNER}{key}": value for key, value in self.backbone.convert_state_dict(image).items()}
        if not ours:
            return made | self._fresh_time()
        table = ours.get("time_embed")
        if table is not None and table.ndim == 2 and self.time_embed is not None:
            ours["time_embed"] = resample_time(table, len(self.time_embed))
        return made | ours

    def _fresh_time(self) -> dict[str, Tensor]:
        """This model's own time attention, with its last layer at zero."""
        own = {key: value for key, value in self.state_dict().items() if not key.startswith(INNER)}
        return {key: torch.zeros_like(value) if ".fc." in key else value for key, value in own.items()}


def resample_time(table: Float[Tensor, "old c"], frames: int) -> Float[Tensor, "new c"]:
    """A table of time for another number of frames, over the same span: linear between frames; itself if equal."""
    if len(table) == frames:
        return table
    kept = table.float() if table.dtype in (torch.bfloat16, torch.float16) else table
    made = F.interpolate(kept.T[None], size=frames, mode="linear", align_corners=False)[0].T  # (1, c, old) -> (new, c)
    return made.to(table.dtype)


def _under(names: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return f"{INNER}{names}" if isinstance(names, str) else tuple(f"{INNER}{name}" for name in names)


def _pattern_under(pattern: str) -> str:
    """A regular expression for names from their start, for the same with ``backbone.`` before them."""
    return f"^backbone\\.(?:{re.sub(_START, '', pattern)})"
