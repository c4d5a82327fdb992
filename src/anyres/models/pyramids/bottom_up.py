"""``create_bottom_up``: any backbone as what detectors and segmenters are built on, one map for each of four strides.

Three kinds, by what the backbone is:

* ResT and ResTv2 as their official detection and segmentation code has them: the same state-dict keys, the same norms
  on the outputs. ResTv2's norms stand on the outputs alone. ResT's stand between the stages: with the same weights,
  stages (2, 3, 4) give other maps than (1, 2, 3, 4).
* Other backbones with stages (most of timm's): the last map of each stride, as timm gives it, without a norm.
* Plain ViTs (DeiT, DeiT III, ResFormer, CaiT, DINO, PatchConvNet, ResMLP, timm's ViTs), which have one stride: a neck
  makes four maps of it. ``neck="learned"`` is ViTDet's simple pyramid in the form that ResFormer's published parameter
  count fits: transposed convolutions that keep the channels, and max pooling, on the last block's map (Li, Mao,
  Girshick, He: "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022, arXiv:2203.16527).
  ``neck="resized"`` has no parameter, as ResFormer's segmentation count wants: four blocks' maps, resized.

Any height and width: map i has ceil(height / stride) x ceil(width / stride) positions. timm's
models, some of which drop what is no whole patch, see the image padded to a multiple of 32, or of a plain ViT's patch,
and their maps are cropped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.contract import Backbone, Loadable, Style
from anyres.models.external import share_members
from anyres.models.pyramids.windows import windowed_maps
from anyres.models.registry import new_model, official_name, variant
from anyres.models.weights import load_weights
from anyres.ops.patch import crop, pad_to_multiple

Neck = Literal["learned", "resized"]
"""How a plain ViT's one stride becomes four."""
STRIDES = (4, 8, 16, 32)
"""Pixels per position of the maps stage1 to stage4, where the backbone has these."""
OF_DETECTOR = "bottom_up."
"""What detectron2 puts before a backbone's names, after ``backbone.``, which is gone when a file has been read."""
OF_SEGMENTER = ("decode_head.", "auxiliary_head.")
"""What a segmenter's file holds beside its backbone."""
_SIDE_NORM = re.compile(r"norm_(\d)\.(?:0\.)?(weight|bias)")


def create_bottom_up(
    name: str,
    *,
    style: Style = "detection",
    stages: Sequence[int] = (1, 2, 3, 4),
    neck: Neck | None = None,
    window: int = 0,
    global_every: int = 3,
    pretrained: str | Path | bool = False,
    **options: Any,
) -> BottomUp:
    """A backbone by its official or tidy name as a pyramid, in training mode: see this module's docstring.

    Its ``forward`` takes an image (b, 3, h, w) of any height and width and gives the dict ``stage1`` ... ``stage4`` of
    maps (b, channels, ceil(h / stride), ceil(w / stride)), those of ``stages`` alone; ``channels`` and ``strides`` say
    how many. ``style``: which official code is meant; ResTv2's detection and segmentation name their norms differently,
    and a plain ViT gets the learned neck for detection, the resized for segmentation, unless ``neck`` is given.
    ``window``: tokens a side within which a plain ViT's blocks attend, but for every ``global_every``-th, which sees
    all; 0: all blocks see all. ViTDet takes 14 for images of 1024 px.
    ``pretrained``: what ``load_weights`` takes, or True for the first known weights: a classifier's, or the backbone in
    a detector's or a segmenter's file. ``options`` are fields of the family's configuration; where the official dense
    code differs from the classifier (drop path, and the depths of ``restv2_large`` in detection), its values hold.
    Raises UserError for an unknown name or option, a stage that the backbone has not, and weights that do not fit.
    """
    official = official_name(name)
    wanted = tuple(stages)
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= {1, 2, 3, 4}:
        raise UserError(f"stages must be some of 1, 2, 3 and 4, each once, not {list(stages)}")
    if style not in ("detection", "segmentation"):
        raise UserError(f"style is 'detection' or 'segmentation', not {style!r}")
    if neck not in (None, "learned", "resized"):
        raise UserError(f"neck is 'learned' or 'resized', not {neck!r}")
    if window < 0 or global_every < 1:
        raise UserError(f"window must be 0 or more, global_every 1 or more, not {window} and {global_every}")
    dense = variant(official).traits.dense.get((style, official), {})
    trunk = new_model(official, 0, **{**dense, **options})
    layout = _layout(trunk, tuple(sorted(wanted)), neck or ("learned" if style == "detection" else "resized"))
    if layout.neck is None and neck is not None:
        raise UserError(f"{trunk.called} has maps of several strides: it takes no neck")
    if window and (layout.neck is None or trunk.traits.windows is None):
        raise UserError(f"{trunk.called} cannot attend in windows: leave window out")
    model = BottomUp(trunk, style, replace(layout, window=window, global_every=global_every))
    if pretrained:
        load_weights(model, "pretrained" if pretrained is True else pretrained)
    return model


def bottom_up_of(trunk: Backbone, style: Style, stages: tuple[int, ...] = (1, 2, 3, 4)) -> BottomUp:
    """A backbone that is there already as a pyramid of these maps, with the neck that ``style`` gives a plain ViT.

    The backbone itself becomes part of it, and loses its classifier. Raises UserError for one without such maps.
    """
    return BottomUp(trunk, style, _layout(trunk, stages, "learned" if style == "detection" else "resized"))


@dataclass(frozen=True)
class Layout:
    """Which map comes from where."""

    stages: tuple[int, ...]
    """Numbers of the maps, from 1."""
    indices: tuple[int, ...]
    """The backbone's feature of each map; a learned neck makes all of one."""
    channels: tuple[int, ...]
    """Channels of each map."""
    strides: tuple[float, ...]
    """Pixels per position of each map."""
    neck: Neck | None
    """None for a backbone with stages."""
    doublings: tuple[int, ...]
    """How often a neck doubles the plain map for each map; below zero: halves."""
    window: int = 0
    """Tokens a side of the windows in which a plain ViT attends; 0: none."""
    global_every: int = 3
    """Every which block attends to all nevertheless."""

    @property
    def multiple(self) -> int:
        """Pixels of which an image's sides are multiples where the backbone drops nothing: 32, or a patch."""
        return int(self.strides[0] * 2 ** self.doublings[0]) if self.doublings else STRIDES[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the dict of maps."""
        return tuple(f"stage{i}" for i in self.stages)


class BottomUp(Loadable):
    """Image (b, k, h, w) -> dict of maps, ``stage1`` ... ``stage4``. See this module's docstring.

    The parameters are the backbone's own, under its own names; a learned neck's are ``fpn1`` ... ``fpn4``.
    """

    trunk: Backbone
    """The backbone, whose members are this module's; so other attributes here have names that no backbone uses."""

    def __init__(self, trunk: Backbone, style: Style, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        before = set(trunk.state_dict())
        trunk.become_bottom_up(layout.stages, style)
        self.left_out = before - set(trunk.state_dict())
        """Names of a classifier's file that this has no use for."""
        share_members(self, "trunk", trunk)
        self.pretrained_cfg = trunk.pretrained_cfg
        if layout.neck == "learned":
            for i, doublings in zip(layout.stages, layout.doublings, strict=True):
                self.add_module(f"fpn{i}", _resizer(layout.channels[0], doublings))
        self.added = set(self.state_dict()) - before
        """Names that no classifier's file has: norms of the outputs, and a neck."""

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each map."""
        return dict(zip(self.layout.names, self.layout.channels, strict=True))

    @property
    def strides(self) -> dict[str, float]:
        """Pixels per position of each map; 3.5, 7, 14 and 28 where a plain ViT's patch is 14."""
        return dict(zip(self.layout.names, self.layout.strides, strict=True))

    @property
    def normed(self) -> bool:
        """Whether its maps have been through a norm: a plain ViT's last one, or those of the outputs."""
        return self.layout.neck is not None or bool(self.added)

    def train(self, mode: bool = True) -> BottomUp:
        super().train(mode)
        self.trunk.train(mode)
        return self

    def forward(self, x: Float[Tensor, "b k h w"]) -> dict[str, Tensor]:
        """Image -> maps (b, c, rows, columns) by name, the finest first."""
        layout = self.layout
        height, width = x.shape[-2:]
        grids = [(_ceil(height, stride), _ceil(width, stride)) for stride in layout.strides]
        whole = x if self.trunk.traits.rounds_up else pad_to_multiple(x, layout.multiple)
        try:
            maps = self._maps(whole)
        except Exception:
            if not self.trunk.traits.rounds_up:  # another library's model, which may take one size only: in one line
                self.trunk.check_sizes([(whole.shape[2], whole.shape[3])])
            raise
        if layout.neck is None and whole is x:
            return dict(zip(layout.names, maps, strict=True))
        return {layout.names[k]: crop(maps[k], grids[k]) for k in range(len(maps))}

    def _maps(self, x: Float[Tensor, "b k h w"]) -> list[Tensor]:
        """The maps, which may have more rows and columns than the image needs."""
        layout = self.layout
        if layout.neck is None:
            return self.trunk.stage_maps(x, layout.indices)
        indices = sorted(set(layout.indices))
        plain = (
            windowed_maps(self.trunk, x, indices, layout.window, layout.global_every)
            if layout.window
            else self.trunk.forward_intermediates(x, indices=indices, norm=True, intermediates_only=True)
        )
        by_index: dict[int, Tensor] = dict(zip(indices, list(plain), strict=True))  # type: ignore[arg-type]
        if layout.neck == "learned":
            return [self.get_submodule(f"fpn{i}")(by_index[layout.indices[0]]) for i in layout.stages]
        return [_resized(by_index[i], count) for i, count in zip(layout.indices, layout.doublings, strict=True)]

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A classifier's file, or the backbone out of a detector's or a segmenter's.

        A classifier's file leaves the norms of the outputs, and a neck, as they are here; its ``norm`` is ResT's norm
        of stage 4. Norms on outputs that are not asked for are left aside, as they change no other map.
        """
        if any(key.startswith(OF_DETECTOR) for key in state):
            state = {
                key.removeprefix(OF_DETECTOR): value for key, value in state.items() if key.startswith(OF_DETECTOR)
            }
        state = {key: value for key, value in state.items() if not key.startswith(OF_SEGMENTER)}
        own = self.state_dict()
        if not all(key in state and state[key].shape == own[key].shape for key in own.keys() - self.added):
            state = self.trunk.convert_state_dict(state)
        heads = self.pretrained_cfg["classifier"]
        heads = tuple(f"{name}." for name in ((heads,) if isinstance(heads, str) else heads))
        found = {}
        for key, value in state.items():
            name = key if key in own else self._side_norm(key, own)
            if name is not None and not (name not in own and (name in self.left_out or name.startswith(heads))):
                found[name] = value
        if not found.keys() & self.added:
            found |= {key: own[key] for key in self.added}
        return found

    def _side_norm(self, key: str, own: dict[str, Tensor]) -> str | None:
        """ResTv2's norm of an output as this names it: ``norm_1.weight`` or ``norm_1.0.weight``; None: not used."""
        found = _SIDE_NORM.fullmatch(key)
        if found is None:
            return key
        names = (f"norm_{found[1]}.{found[2]}", f"norm_{found[1]}.0.{found[2]}")
        return next((name for name in names if name in own), None)

    def pretrained_state(self) -> dict[str, Tensor] | None:
        """The weights that a foreign library publishes for the backbone."""
        return self.trunk.pretrained_state()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's own layers; norms of the outputs and a neck are in the last."""
        return self.trunk.group_matcher(coarse)

    def no_weight_decay(self) -> set[str]:
        """The backbone's own."""
        return self.trunk.no_weight_decay() & {name for name, _ in self.named_parameters()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass."""
        self.trunk.set_grad_checkpointing(enable)

    def check_sizes(self, sizes: Iterable[tuple[int, int]], *, training: bool = False) -> None:
        """Raises UserError, one line, for the first (height, width) in pixels that the backbone cannot take."""
        self.trunk.check_sizes(sizes, training=training)


def _layout(trunk: Backbone, stages: tuple[int, ...], plain_neck: Neck) -> Layout:
    """Where the maps come from; ``plain_neck`` if the backbone has one stride.

    Raises UserError for a backbone without maps, or without those of a stage.
    """
    features = trunk.feature_info
    if not features:
        raise UserError(f"{trunk.called} gives no maps to build a pyramid on: take a model of timm's, timm:NAME")
    reductions = [info["reduction"] for info in features]
    neck: Neck | None = None
    if len(set(reductions)) > 1:
        indices = tuple(_last(trunk.called, reductions, STRIDES[i - 1]) for i in stages)
        strides = tuple(float(STRIDES[i - 1]) for i in stages)
        doublings: tuple[int, ...] = ()
    else:
        neck = plain_neck
        depth, patch = len(features), reductions[0]
        indices = tuple(depth - 1 if neck == "learned" else max(depth * i // 4 - 1, 0) for i in stages)
        doublings = tuple(round(math.log2(patch / STRIDES[0])) + 1 - i for i in stages)
        strides = tuple(patch / 2**count for count in doublings)
    return Layout(
        stages=stages,
        indices=indices,
        channels=tuple(features[i]["num_chs"] for i in indices),
        strides=strides,
        neck=neck,
        doublings=doublings,
    )


def _last(called: str, reductions: Sequence[int], stride: int) -> int:
    """The last feature of a stride."""
    places = [i for i, reduction in enumerate(reductions) if reduction == stride]
    if not places:
        held = ", ".join(map(str, sorted(set(reductions))))
        raise UserError(
            f"{called} has maps of strides {held}, none of {stride}: leave stage {STRIDES.index(stride) + 1} out"
        )
    return places[-1]


def _resizer(dim: int, doublings: int) -> nn.Module:
    """The learned neck of one map: transposed convolutions that double it, with norm and GELU between, or pooling."""
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings, ceil_mode=True)
    layers: list[nn.Module] = []
    for i in range(doublings):
        between = [LayerNorm2d(dim), nn.GELU()] if i else []
        layers += [*between, nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)]
    return nn.Sequential(*layers)


def _resized(maps: Float[Tensor, "b c h w"], doublings: int) -> Float[Tensor, "b c ho wo"]:
    """The neck without parameters: bilinear, or the largest of each square."""
    if doublings > 0:
        return F.interpolate(maps, scale_factor=float(2**doublings), mode="bilinear", align_corners=False)
    return F.max_pool2d(maps, 2**-doublings, ceil_mode=True) if doublings else maps


def _ceil(side: int, stride: float) -> int:
    """Positions along a side. Integers where the stride is one, as an exported program has no float of a free size."""
    if stride == int(stride):
        whole = int(stride)
        return (side + whole - 1) // whole
    return math.ceil(side / stride)
