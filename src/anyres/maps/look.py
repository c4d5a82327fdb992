"""One image's maps by one method, with what the model answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from anyres.config import UserError, nearest
from anyres.maps.attention import attention_maps
from anyres.maps.gradients import cam, integrated_gradients, occlusion
from anyres.models.contract import Backbone

Method = Literal["attention", "cam", "gradients", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Seen:
    """What a model looks at in one image."""

    method: Method
    layer: int | None
    """Counted from 0; None: of the whole model."""
    maps: Float32[Tensor, "g rows columns"]
    """At least 0. Attention: each sums to 1 at most, the rest is attention to class tokens. Others: in logits."""
    names: tuple[str, ...]
    """Of each map."""
    stride: int
    """Pixels of the image on a side of each position; the last row and column may reach beyond the image."""
    logits: Float32[Tensor, " k"]
    of: int | None
    """The class the maps speak for; None: they are the same for every class."""


def method_of(model: Backbone, method: str | None) -> Method:
    """The method asked for, or the usual one: attention where the family has it, else cam. Raises UserError."""
    if method is None:
        return "attention" if model.traits.look else "cam"
    for known in METHODS:
        if method == known:
            return known
    raise UserError(f"no method is called {method!r}: {', '.join(METHODS)}{nearest(method, METHODS)}")


def look_at(
    model: Backbone,
    x: Float[Tensor, "1 k h w"],
    method: Method,
    layer: int | None = None,
    of: int | None = None,
) -> Seen:
    """Maps of one normalized image of any height and width, by a model in evaluation mode, in float32.

    ``layer``: counted from 0, negative from the end (attention: blocks with attention that is a map; cam: features);
    None: the last. ``of``: a class by its index; None: the likeliest. Raises UserError where they do not go together.
    """
    if method == "attention":
        return _attention(model, x, layer, of)
    if not model.num_classes:
        raise UserError(f"{model.called} has no classifier, and {method} is of a class: use method attention")
    with torch.no_grad():
        logits = model(x)[0].float()
    asked = int(logits.argmax()) if of is None else of
    target = torch.tensor([asked], device=x.device)
    if method == "cam":
        found, place = cam(model, x, target, layer)
        stride = int(model.feature_info[place]["reduction"])
        return Seen(method, place, found.cpu(), (method,), stride, logits.cpu(), asked)
    if layer is not None:
        raise UserError(f"{method} is of the whole model: leave out the layer, or use method attention or cam")
    if method == "gradients":
        return Seen(method, None, integrated_gradients(model, x, target).cpu(), (method,), 1, logits.cpu(), asked)
    return Seen(method, None, occlusion(model, x, target).cpu(), (method,), 1, logits.cpu(), asked)


def _attention(model: Backbone, x: Float[Tensor, "1 k h w"], layer: int | None, of: int | None) -> Seen:
    attended = attention_maps(model, x, layer)
    maps, logits = attended.maps[0].float().cpu(), attended.logits[0].float().cpu()
    if attended.per_class:
        asked = int(logits.argmax()) if of is None else of
        return Seen("attention", attended.layer, maps[asked : asked + 1], ("pooling",), attended.stride, logits, asked)
    if of is not None:
        raise UserError(f"the attention of {model.called} is the same for every class: use method cam with a class")
    names = ("pooling",) if len(maps) == 1 else tuple(f"head {i + 1}" for i in range(len(maps)))
    return Seen("attention", attended.layer, maps, names, attended.stride, logits, None)
