"""anyres: train one vision backbone that holds its accuracy at every input size.

run = anyres.train("restv2_nano", data="photos", out="runs/mine")
print(anyres.curve("runs/mine", sizes=["64:320:32"]).rows())
print(anyres.predict("runs/mine", "photo.jpg", size=96)[0].line)
model = anyres.create_model("resformer_small", num_classes=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyres.imports import when_imported

if TYPE_CHECKING:
    __version__: str
    from anyres.config import UserError
    from anyres.data.sources import register_reader
    from anyres.deploy.engines.backend import register_engine
    from anyres.deploy.fuse import fuse
    from anyres.models.create import create_model
    from anyres.models.dense.create import create_task_model
    from anyres.models.pyramids.bottom_up import create_bottom_up
    from anyres.models.registry import list_models, register_family
    from anyres.models.weights import load_weights
    from anyres.runs.compare import compare
    from anyres.runs.evaluate import curve, evaluate
    from anyres.runs.export import export
    from anyres.runs.fourier import fourier
    from anyres.runs.look import look
    from anyres.runs.opened import load
    from anyres.runs.pick import pick
    from anyres.runs.predict import predict
    from anyres.runs.predictor import Predictor
    from anyres.runs.train import train
    from anyres.tasks import ImageTask, register_task
    from anyres.training.objectives import Term, register_objective

_HOMES = {
    "ImageTask": "anyres.tasks",
    "Predictor": "anyres.runs.predictor",
    "Term": "anyres.training.objectives",
    "UserError": "anyres.config",
    "compare": "anyres.runs.compare",
    "create_bottom_up": "anyres.models.pyramids.bottom_up",
    "create_model": "anyres.models.create",
    "create_task_model": "anyres.models.dense.create",
    "curve": "anyres.runs.evaluate",
    "evaluate": "anyres.runs.evaluate",
    "export": "anyres.runs.export",
    "fourier": "anyres.runs.fourier",
    "fuse": "anyres.deploy.fuse",
    "list_models": "anyres.models.registry",
    "load": "anyres.runs.opened",
    "load_weights": "anyres.models.weights",
    "look": "anyres.runs.look",
    "pick": "anyres.runs.pick",
    "predict": "anyres.runs.predict",
    "register_engine": "anyres.deploy.engines.backend",
    "register_family": "anyres.models.registry",
    "register_objective": "anyres.training.objectives",
    "register_reader": "anyres.data.sources",
    "register_task": "anyres.tasks",
    "train": "anyres.runs.train",
}

__all__ = [
    "ImageTask",
    "Predictor",
    "Term",
    "UserError",
    "compare",
    "create_bottom_up",
    "create_model",
    "create_task_model",
    "curve",
    "evaluate",
    "export",
    "fourier",
    "fuse",
    "list_models",
    "load",
    "load_weights",
    "look",
    "pick",
    "predict",
    "register_engine",
    "register_family",
    "register_objective",
    "register_reader",
    "register_task",
    "train",
]


def __getattr__(name: str) -> Any:  # torch is imported when something is wanted, not before
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("anyres")
    if name not in _HOMES:
        raise AttributeError(f"module 'anyres' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _register_with_timm(_: object) -> None:
    from anyres.models.timm_names import register

    register()


when_imported("timm.models", _register_with_timm)
