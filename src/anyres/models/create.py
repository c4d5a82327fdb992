"""``create_model``: a model by its name, with or without weights. Its callers decide when torch is imported."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyres.models.index import first_weights, known_weights
from anyres.models.registry import new_model, official_name, variant

if TYPE_CHECKING:
    from anyres.models.contract import Backbone


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: str | Path | bool = False,
    replace_head: bool = False,
    **options: Any,
) -> Backbone:
    """A model by its official or tidy name, in training mode, freshly initialised or with published or own weights.

    ``timm:NAME`` and ``torchvision:NAME`` are the models of those libraries, in the same contract. ``num_classes`` is
    the model's own if None: 1000, but 0 (no head) for DINO's. ``options`` are fields of the family's configuration,
    such as ``drop_path=0.1`` or ``in_chans=1``. ``pretrained`` is anything ``load_weights`` takes, or True for the
    first known weights; a set of the index (``"deit3_small.384"``) also sets ``img_size``, where the family has one
    and none is given. ``replace_head`` leaves the weights' classifier aside, for other classes.
    Raises UserError for an unknown name or option, and for weights that cannot be had or do not fit.
    """
    official = official_name(name)
    source = "pretrained" if pretrained is True else pretrained
    if source == "pretrained" and not variant(official).foreign:
        source = first_weights(official)
    row = next((row for row in known_weights(official) if row.name == source), None)
    if row and "img_size" in {field.name for field in fields(variant(official).config)}:
        options = {"img_size": row.img_size, **options}
    model = new_model(official, num_classes, **options)
    if source:
        from anyres.models.weights import load_weights  # with torch

        load_weights(model, source, replace_head=replace_head)
    return model
