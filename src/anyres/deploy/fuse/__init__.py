"""``fuse``: a trained model of any family -> its deploy form, the same function with fewer operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from anyres.config import UserError
from anyres.deploy.fuse.cait import FoldedCaiT
from anyres.deploy.fuse.folded import Folded
from anyres.deploy.fuse.patchconvnet import FoldedPatchConvNet
from anyres.deploy.fuse.resformer import FoldedResFormer
from anyres.deploy.fuse.resmlp import FoldedResMLP
from anyres.deploy.fuse.rest import FoldedResT
from anyres.deploy.fuse.restv2 import FoldedResTv2
from anyres.deploy.fuse.tables import pin
from anyres.deploy.fuse.vit import FoldedViT
from anyres.models.cait import CaiT
from anyres.models.contract import Backbone
from anyres.models.deit import DeiT
from anyres.models.deit3 import DeiT3
from anyres.models.dino import DINO
from anyres.models.patchconvnet import PatchConvNet
from anyres.models.resformer import ResFormer
from anyres.models.resmlp import ResMLP
from anyres.models.rest import ResT
from anyres.models.restv2 import ResTv2

FORMS: dict[type[Backbone], Callable[[Any], Folded]] = {
    CaiT: FoldedCaiT,
    DeiT: FoldedViT,
    DeiT3: FoldedViT,
    DINO: FoldedViT,
    PatchConvNet: FoldedPatchConvNet,
    ResFormer: FoldedResFormer,
    ResMLP: FoldedResMLP,
    ResT: FoldedResT,
    ResTv2: FoldedResTv2,
}


def fuse(model: nn.Module, size: int | tuple[int, int] | None = None) -> Folded:
    """The deploy form of a trained model: image (b, k, h, w) -> logits (b, num_classes), equal to 1e-5.

    It has weights of its own, none of which wants a gradient, on the device and in the dtype of the model, which stays
    as it is, and cannot be trained. Without a ``size`` it takes every height and width, and remembers what depends on
    them alone (``anyres.deploy.fuse.tables.PerGrid``). With a ``size`` in pixels, a side or (height, width), that is
    made now, a constant for whoever compiles or exports, and another size is refused where anything depends on it.
    Raises UserError for a module that is not of our families, and for a size below one pixel.
    """
    if isinstance(model, Folded):
        raise UserError("the model is folded already")
    if not isinstance(model, Backbone) or type(model) not in FORMS:
        raise UserError(f"a {type(model).__name__} cannot be folded: fuse takes models of anyres.list_models()")
    with torch.no_grad():
        folded = FORMS[type(model)](model).eval().requires_grad_(False)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise UserError(f"a size is at least one pixel, not {height}x{width}")
        weight = next(folded.parameters())
        pin(folded, weight.new_zeros(1, model.pretrained_cfg["input_size"][0], height, width))
    return folded
