"""Which parameters of a model are trained: all, attention and what goes with it, or the classifier alone."""

from __future__ import annotations

from typing import Literal

from torch import nn

from anyres.config import UserError
from anyres.models.contract import Backbone


def freeze(model: Backbone, trainable: Literal["all", "attention", "head"]) -> None:
    """Leave only ``trainable`` parameters with ``requires_grad``.

    ``attention``: of attention modules, position tables and the classifier, as "Three things everyone should know
    about Vision Transformers" (Touvron et al., ECCV 2022) fine-tunes; norms, layer scales, MLPs, class token and patch
    embedding are frozen. Raises UserError for a model that has no attention.
    """
    if trainable == "all":
        return
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    if trainable == "attention":
        found = model.attention_modules()
        if not found:
            raise UserError(f"train.trainable=attention: {model.called} has no attention; choose all or head")
        for module in found:
            module.requires_grad_(True)
        for table in _position_tables(model):
            table.requires_grad_(True)


def _position_tables(model: Backbone) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.split(".")[0] == "pos_embed"]
