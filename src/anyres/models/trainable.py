"""Which parameters of a model are trained: all, those after its first blocks, attention and what goes with it, or the
classifier alone."""

from __future__ import annotations

from typing import Literal

from timm.models import group_parameters
from torch import nn

from anyres.config import UserError
from anyres.models.contract import Network


def freeze(model: Network, trainable: Literal["all", "attention", "head"], blocks: int = 0) -> None:
    """Leave only ``trainable`` parameters with ``requires_grad``, and none of the stem and the first ``blocks`` blocks.

    ``attention``: of attention modules, position tables and the classifier, as "Three things everyone should know
    about Vision Transformers" (Touvron et al., ECCV 2022) fine-tunes; norms, layer scales, MLPs, class token and patch
    embedding are frozen. Raises UserError for a model that has no attention, or not so many blocks.
    """
    if trainable != "all":
        _leave(model, trainable)
    if blocks:
        _freeze_first(model, blocks)


def _leave(model: Network, trainable: Literal["attention", "head"]) -> None:
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


def _freeze_first(model: Network, blocks: int) -> None:
    """The layers are those of timm's layer decay: 0 is the stem with its tables, the last one the norm and the head."""
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    most = max(layers.values()) - 1
    if blocks > most:
        raise UserError(f"train.freeze_blocks={blocks}: {model.called} has {most} blocks; give at most as many")
    for name, parameter in model.named_parameters():
        if layers[name] <= blocks:
            parameter.requires_grad_(False)


def _position_tables(model: Network) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.split(".")[0] == "pos_embed"]
