"""``fuse``: a trained model of any family -> its deploy form, the same function with fewer operations."""

from __future__ import annotations

import copy
import pkgutil

import torch
from torch import nn

from anyres.config import UserError
from anyres.deploy.fuse.folded import Folded
from anyres.deploy.fuse.tables import pin
from anyres.models.contract import Backbone


def fuse(model: nn.Module, size: int | tuple[int, int] | None = None) -> nn.Module:
    """The deploy form of a trained model: image (b, k, h, w) -> logits (b, num_classes), equal to 1e-5.

    It has weights of its own, none of which wants a gradient, on the device and in the dtype of the model, which stays
    as it is, and cannot be trained. Without a ``size`` it takes every height and width, and remembers what depends on
    them alone (``anyres.deploy.fuse.tables.PerGrid``). With a ``size`` in pixels, a side or (height, width), that is
    made now, a constant for whoever compiles or exports, and another size is refused where anything depends on it.
    A model whose family declares no deploy form (``traits.fold``), such as one of timm's, comes back as a copy.
    Raises UserError for a module that is no ``Backbone``, and for a size that cannot be.
    """
    if isinstance(model, Folded):
        raise UserError("the model is folded already")
    if not isinstance(model, Backbone):
        raise UserError(f"a {type(model).__name__} cannot be folded: fuse takes what anyres.create_model makes")
    height, width = (size, size) if isinstance(size, int) else size or (1, 1)
    if min(height, width) < 1:
        raise UserError(f"a size is at least one pixel, not {height}x{width}")
    if model.traits.fold is None:
        copied = copy.deepcopy(model).eval().requires_grad_(False)
        if size is not None:
            copied.fix_size(height, width)
        return copied
    folded: Folded
    with torch.no_grad():
        folded = pkgutil.resolve_name(model.traits.fold)(model).eval().requires_grad_(False)
    if size is not None:
        weight = next(folded.parameters())
        pin(folded, weight.new_zeros(1, model.pretrained_cfg["input_size"][0], height, width))
    return folded
