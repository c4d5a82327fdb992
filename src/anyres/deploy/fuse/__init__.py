"""``fuse``: a trained model -> its folded form, the same function with fewer operations."""

from __future__ import annotations

import copy
import pkgutil

import torch
from torch import nn

from anyres.config import UserError
from anyres.deploy.fuse.folded import Folded
from anyres.deploy.fuse.tables import bake
from anyres.flow import Size
from anyres.models.contract import Backbone


def fuse(model: nn.Module, size: int | str | tuple[int, int] | None = None) -> nn.Module:
    """The folded form of a trained model: images (b, c, h, w) -> logits (b, num_classes), equal to 1e-5.

    It is a model of its own for evaluation, without gradients, on the device and in the dtype of ``model``, which stays
    unchanged. A model whose family has no folded form (timm's, other packages', any nn.Module) is copied as it is.
    Without a ``size`` a folded form takes every height and width, and caches tensors that depend on them alone
    (``anyres.deploy.fuse.tables.GridCache``). With a ``size`` in pixels, a side, ``"320x192"`` or
    (height, width), these are computed now and are constants for compilers and exporters; other sizes are refused where
    anything depends on them. Raises UserError for a folded model, and for a size below one pixel.
    """
    if isinstance(model, Folded):
        raise UserError("the model is folded already")
    size = Size.parse(size) if isinstance(size, str) else size
    height, width = (size, size) if size is None or isinstance(size, int) else size
    if height is not None and width is not None and min(height, width) < 1:
        raise UserError(f"a size is at least one pixel, not {height}x{width}")
    if not isinstance(model, Backbone) or model.traits.fold is None:
        copied = copy.deepcopy(model).eval().requires_grad_(False)
        if isinstance(copied, Backbone) and height is not None and width is not None:
            copied.fix_size(height, width)
        return copied
    with torch.no_grad():
        folded: Folded = pkgutil.resolve_name(model.traits.fold)(model).eval().requires_grad_(False)
    if height is not None and width is not None:
        weight = next(folded.parameters())
        bake(folded, weight.new_zeros(1, model.pretrained_cfg["input_size"][0], height, width))
    return folded
