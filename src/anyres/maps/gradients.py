"""What speaks for a class, by captum's methods for any model: activation maps, integrated gradients, occlusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from anyres.config import UserError, need
from anyres.maps.attention import place_of
from anyres.models.contract import Backbone
from anyres.ops.patch import Grid, to_maps, to_tokens

STEPS = 32
"""Of the path from the mean color to the image, for integrated gradients."""
WINDOWS = 6
"""How many occluded windows stand side by side along the short side; they move by half of their side."""
AT_A_TIME = 8
"""Images that are run at once, of a path's steps and of occluded ones."""


def _captum() -> Any:
    return need("captum.attr", extra="maps", purpose="a map by cam, gradients or occlusion")


def _detached(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def integrated_gradients(
    model: Backbone, x: Float[Tensor, "b k h w"], target: Int64[Tensor, " b"]
) -> Float[Tensor, "b h w"]:
    """Integrated gradients (Sundararajan et al., ICML 2017) of the target's logit, from the mean color on.

    Of each pixel the absolute values, summed over channels: at least 0, in logits.
    """
    method = _captum().IntegratedGradients(model)
    found: Tensor = method.attribute(_detached(x), target=target, n_steps=STEPS, internal_batch_size=AT_A_TIME * len(x))
    return found.detach().abs().sum(1).float()


@torch.no_grad()
def occlusion(model: Backbone, x: Float[Tensor, "b k h w"], target: Int64[Tensor, " b"]) -> Float[Tensor, "b h w"]:
    """By how much the target's logit falls where a window is of the mean color, the mean of all windows over a pixel.

    At least 0, in logits: where it rises instead, 0. A window's side is a sixth of the image's short side.
    """
    channels, height, width = x.shape[1:]
    side = max(1, min(height, width) // WINDOWS)
    step = max(1, side // 2)
    method = _captum().Occlusion(model)
    found: Tensor = method.attribute(
        x.detach(),
        sliding_window_shapes=(channels, side, side),
        strides=(channels, step, step),
        target=target,
        perturbations_per_eval=AT_A_TIME,
    )
    return found[:, 0].clamp_min(0).float()  # all channels of a window have the same


def cam(
    model: Backbone, x: Float[Tensor, "b k h w"], target: Int64[Tensor, " b"], layer: int | None = None
) -> tuple[Float[Tensor, "b rows columns"], int]:
    """Which positions of a layer speak for the target's logit, and the layer counted from 0.

    At each position the sum over channels of gradient x activation (HiResCAM, Draelos and Carin 2020), at least 0, of
    the layer as what follows reads it: after the layer norm, where one is next. Where that is averaged before a linear
    classifier, it is Grad-CAM and the class activation map. Grad-CAM itself averages gradients over positions: where
    attention pools, those that count for nothing weigh like those that count (benchmarks/maps.py measures both).

    ``layer`` counts ``model.feature_info``, negative from the end. None: the last whose positions the logit depends
    on; where a class token answers, that is not the last block, after which patches count for nothing. Class tokens
    are left out. Raises UserError for a layer that is not there, or is no map.
    """
    names = [str(info["module"]) for info in model.feature_info]
    if not names:
        raise UserError(f"{model.called} does not say what its layers are: use method gradients or occlusion")
    if layer is not None:
        place = place_of(layer, len(names), model)
        return _cam_at(model, x, target, place).clamp_min(0), place
    for place in reversed(range(len(names))):
        found = _cam_at(model, x, target, place)
        if found.any():
            break
    return found.clamp_min(0), place


def _cam_at(
    model: Backbone, x: Float[Tensor, "b k h w"], target: Int64[Tensor, " b"], place: int
) -> Float[Tensor, "b rows columns"]:
    """Of one layer, with what speaks against the class below 0."""
    twice, targets = torch.cat((x, x)), torch.cat((target, target))  # what is no image's comes once, and is told apart
    with layer_as_map(model, place, twice) as probe:
        found: Tensor = _captum().LayerGradientXActivation(model, probe).attribute(_detached(twice), target=targets)
    return found.detach()[: len(x)].sum(1).float()


Change = Callable[[Tensor], Tensor]
MOST_SPECIALS = 8
"""Class, distillation and register tokens of models of other libraries, at most."""


@contextmanager
def layer_as_map(model: Backbone, place: int, x: Float[Tensor, "b k h w"]) -> Iterator[nn.Module]:
    """Inside, a layer's positions pass through the module given, as a map (b, c, rows, columns), and are put back.

    captum hooks that module. Only the layout is changed, so the model's numbers stay as they are. It is the layer as
    what follows reads it: gradients before a layer norm are at right angles to what it is given, and say nothing by
    their product. ``x``: two images or more, as will be given.
    """
    info, probe = model.feature_info[place], nn.Identity()
    read = _reading(model, place, x)

    def through(_: nn.Module, __: Any, output: Any) -> Tensor | None:
        layout = _layout(output, info, x)
        if layout is None:
            return None
        there, back = layout
        return back(probe(there(output)))

    handle = read.register_forward_hook(through)
    try:
        yield probe
    finally:
        handle.remove()


@torch.no_grad()
def _reading(model: Backbone, place: int, x: Float[Tensor, "b k h w"]) -> nn.Module:
    """The layer norm that is given a layer's positions next, or else the layer itself. Raises UserError."""
    info = model.feature_info[place]
    layer = model.get_submodule(str(info["module"]))
    while isinstance(layer, nn.ModuleList):  # a stage, which is never called itself: its last block
        layer = layer[-1]
    ran: list[nn.Module] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if (ran or module is layer) and _layout(output, info, x) is not None:
            ran.append(module)

    watched = {layer, *(module for module in model.modules() if isinstance(module, nn.LayerNorm))}
    handles = [module.register_forward_hook(note) for module in watched]
    called: list[bool] = []
    handles.append(layer.register_forward_hook(lambda *_: called.append(True)))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    if not called:
        size = f"{x.shape[-2]}x{x.shape[-1]}"
        raise UserError(f"{model.called} runs a copy of itself at {size} px: give its own size, or method gradients")
    if not ran:
        raise UserError(f"layer {info['module']} of {model.called} gives no map: use another, or method gradients")
    return ran[1] if len(ran) > 1 else layer


def _layout(output: Any, info: dict[str, Any], x: Float[Tensor, "b k h w"]) -> tuple[Change, Change] | None:
    """How a module's output becomes a map (b, c, rows, columns), and how that is put back; None: it is none of x."""
    reduction, channels = int(info["reduction"]), int(info["num_chs"])
    if not isinstance(output, Tensor) or len(output) != len(x):
        return None
    height, width = x.shape[-2:]
    up = (-(-height // reduction), -(-width // reduction))
    down = (height // reduction, width // reduction)  # models of other libraries may cut what is left
    if output.ndim == 4 and output.shape[1] == channels and tuple(output.shape[2:]) in (up, down):
        return lambda y: y, lambda y: y
    if output.ndim == 4 and output.shape[3] == channels and tuple(output.shape[1:3]) in (up, down):
        return lambda y: y.permute(0, 3, 1, 2), lambda y: y.permute(0, 2, 3, 1)
    if output.ndim == 3 and output.shape[2] == channels:
        for grid in (up, down):
            count = grid[0] * grid[1]
            special = output.shape[1] - count  # class tokens stand before the patches
            if 0 <= special <= MOST_SPECIALS and count:
                return _tokens_as_map(output[:, :special], grid)
    return None


def _tokens_as_map(special: Float[Tensor, "b s c"], grid: Grid) -> tuple[Change, Change]:
    """Of tokens, the ``special`` ones first."""
    count = special.shape[1]
    return lambda y: to_maps(y[:, count:], grid), lambda y: torch.cat((special, to_tokens(y)), dim=1)
