"""anyres: train one vision backbone that holds its accuracy at every input size.

model = anyres.create_model("resformer_small", num_classes=10)
anyres.load_weights(model, "runs/mine")
anyres.list_models("rest*")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from anyres.config import UserError
    from anyres.deploy.fuse import fuse
    from anyres.deploy.predictor import Predictor
    from anyres.models.create import create_model
    from anyres.models.registry import list_models, register_family
    from anyres.models.weights import load_weights

__all__ = ["Predictor", "UserError", "create_model", "fuse", "list_models", "load_weights", "register_family"]

_HOMES = {
    "Predictor": "anyres.deploy.predictor",
    "UserError": "anyres.config",
    "create_model": "anyres.models.create",
    "fuse": "anyres.deploy.fuse",
    "list_models": "anyres.models.registry",
    "load_weights": "anyres.models.weights",
    "register_family": "anyres.models.registry",
}


def __getattr__(name: str) -> Any:  # torch is imported when a model is wanted, not before
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'anyres' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


@wrapt.when_imported("timm.models")
def _register_with_timm(_: object) -> None:
    from anyres.models.timm_names import register

    register()
