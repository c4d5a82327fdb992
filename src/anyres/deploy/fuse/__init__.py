"""``fuse``: a trained model -> its folded form, the same function with fewer operations."""

from __future__ import annotations

import copy
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
from anyres.deploy.fuse.tables import bake
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


def fuse(model: nn.Module, size: int | tuple[int, int] | None = None) -> nn.Module:
    """The folded form of a trained model: images (b, c, h, w) -> logits (b, num_classes), equal to 1e-5.

    It is a model of its own for evaluation, without gradients, on the device and in the dtype of ``model``, which stays
    unchanged. A model whose family has no folded form (timm's, other packages', any nn.Module) is copied as it is.
    Without a ``size`` a folded form takes every height and width, and caches tensors that depend on them alone
    (``anyres.deploy.fuse.tables.GridCache``). With a ``size`` in pixels, a side or (height, width), these are computed
    now and are constants for compilers and exporters; other sizes are refused where anything depends on them.
    Raises UserError for a folded model, and for a size below one pixel.
    """
    if isinstance(model, Folded):
        raise UserError("the model is folded already")
    height, width = (size, size) if size is None or isinstance(size, int) else size
    if height is not None and width is not None and min(height, width) < 1:
        raise UserError(f"a size is at least one pixel, not {height}x{width}")
    if not isinstance(model, Backbone) or type(model) not in FORMS:
        return copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        folded = FORMS[type(model)](model).eval().requires_grad_(False)
    if height is not None and width is not None:
        weight = next(folded.parameters())
        bake(folded, weight.new_zeros(1, model.pretrained_cfg["input_size"][0], height, width))
    return folded
