"""Which model a state dict is of: for the message when weights do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from anyres.config import UserError
from anyres.models.contract import Backbone
from anyres.models.registry import new_model
from anyres.models.zoo import MODEL_STATS, ModelStats

LEAST_SHARED = 0.9
"""The share of tensors that a model and a file must have in common by name and shape."""
BY_CLASSES_OR_GRID = re.compile(r"^(head|pos_embed)|\.(attn|linear_tokens)\.weight$")
"""Tensors whose size depends on the number of classes or of tokens."""

Shapes = frozenset[tuple[str, tuple[int, ...]]]


def identify_checkpoint(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Official names of the models that ``state`` may be of, the likeliest first, with the share of common tensors.

    Classifiers and position tables are left aside, as they differ between files of one model; among equals, the model
    that has those too comes first.
    """
    light = {key: tensor.to("meta") for key, tensor in state.items()}
    count = len(_body(_shapes(light)))
    weight = sum(tensor.numel() for key, tensor in light.items() if not BY_CLASSES_OR_GRID.search(key))
    known = {name: stats for models in MODEL_STATS.values() for name, stats in models.items()}
    near = [name for name, stats in known.items() if _near(stats, count, weight)]
    shares = {name: _shares(name, light) for name in near}
    likely = sorted((name for name in near if shares[name][0] >= LEAST_SHARED), key=lambda name: shares[name])
    return {name: shares[name][0] for name in reversed(likely)}


def _near(stats: ModelStats, count: int, weight: int) -> bool:
    """Whether a model has about as many tensors and parameters as the file: only then is it built to compare."""
    tensors = stats.tensors - stats.head_tensors
    alike = LEAST_SHARED * tensors - 4 <= count <= tensors / LEAST_SHARED + 4  # 4: two heads, and rounding
    return alike and stats.parameters / 1.5 <= weight <= stats.parameters * 1.5


def _shares(name: str, state: dict[str, Tensor]) -> tuple[float, int]:
    """How much a model and a file have in common: of the bodies' tensors, the share; of all as the file has them."""
    model = _on_meta(name)
    own, given = _shapes(model.state_dict()), _shapes(state)
    try:
        theirs = _shapes(model.convert_state_dict(dict(state)))
    except UserError:
        theirs = given
    ours, theirs = _body(own), _body(theirs)
    return len(ours & theirs) / len(ours | theirs), len(own & given)


@cache
def _on_meta(name: str) -> Backbone:
    """The model without storage."""
    with torch.device("meta"):
        return new_model(name)


def _body(shapes: Shapes) -> Shapes:
    return frozenset((key, shape) for key, shape in shapes if not key.startswith(("head", "pos_embed")))


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return frozenset((key, tuple(tensor.shape)) for key, tensor in state.items())
