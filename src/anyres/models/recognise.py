"""Which model a state dict is of: for the message when weights do not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from anyres.config import UserError
from anyres.models.registry import create_model
from anyres.models.zoo import FAMILIES

MOST_BUILT = 12
"""How many models are built, without storage, to compare; those with the nearest number of tensors."""
LEAST_SHARED = 0.9
"""The share of a model's tensors that must be in the file by name and shape."""


def recognise(state: Mapping[str, Tensor]) -> list[str]:
    """Official names of the models that ``state`` may be of, the likeliest first; [] if it is like none.

    Classifiers and what depends on an image's grid are left aside, as they may differ between files of one model.
    """
    tensors = {name: facts.tensors for models in FAMILIES.values() for name, facts in models.items()}
    nearest = sorted(tensors, key=lambda name: abs(tensors[name] - len(state)))[:MOST_BUILT]
    shares = {name: _share(name, state) for name in nearest}
    return sorted((name for name in nearest if shares[name] >= LEAST_SHARED), key=lambda name: -shares[name])


def _share(name: str, state: Mapping[str, Tensor]) -> float:
    """The share of the tensors of a model that ``state`` has by name and shape, out of all that either has."""
    with torch.device("meta"):
        model = create_model(name)
    try:
        theirs = _shapes(model.adapt_state(dict(state)))
    except UserError:
        theirs = _shapes(state)
    own = _shapes(model.state_dict())
    return len(own & theirs) / len(own | theirs)


def _shapes(state: Mapping[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {(key, tuple(tensor.shape)) for key, tensor in state.items() if not key.startswith(("head", "pos_embed"))}
