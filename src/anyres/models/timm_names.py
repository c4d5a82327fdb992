"""Our models under timm's roof: after ``import anyres``, ``timm.create_model`` also builds every name that timm lacks.

timm's own machinery does its part there: ``features_only``, ``pretrained`` and its cache, tags (``S60.224_1k``),
``hf-hub:`` ids. Names that timm has are left alone. Only names are registered; no model is built or imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from anyres.models.contract import Backbone
from anyres.models.index import Weights, known_weights
from anyres.models.registry import create_model, variant
from anyres.models.zoo import ALIASES, FAMILIES

__all__: list[str] = []  # timm writes the registered names here
default_cfgs: dict[str, Any] = {}
"""timm looks here for a name's DefaultCfg: the transform and address of each known set of weights."""


def register() -> None:
    """Registers every official and tidy name that timm does not have. A second call does nothing."""
    from timm.models import is_model, register_model
    from timm.models._pretrained import DefaultCfg, PretrainedCfg

    official = {name: name for models in FAMILIES.values() for name in models}
    for name, model in {**official, **ALIASES}.items():
        if is_model(name):
            continue
        cfgs = {row.name.partition(".")[2]: PretrainedCfg(**_cfg(row)) for row in known_weights(model)}
        default_cfgs[name] = DefaultCfg(tags=list(cfgs) or [""], cfgs=cfgs or {"": PretrainedCfg()})
        register_model(_entry_point(name, model))


def _cfg(row: Weights) -> dict[str, Any]:
    """timm's description of a set of weights."""
    return {
        "url": row.url,
        "input_size": (3, row.img_size, row.img_size),
        "crop_pct": row.crop_pct,
        "crop_mode": row.crop_mode,
        "interpolation": row.interpolation,
        "mean": row.mean,
        "std": row.std,
        "license": row.licence,
        "origin_url": row.published,
    }


def _entry_point(name: str, model: str) -> Callable[..., nn.Module]:
    """What timm calls with its arguments to build ``model``."""

    def build(
        num_classes: int | None = None, drop_path_rate: float = 0.0, global_pool: str | None = None, **options: Any
    ) -> Backbone:
        backbone = create_model(model, num_classes, drop_path=drop_path_rate, **options)
        if global_pool:
            backbone.reset_classifier(backbone.num_classes, global_pool)
        return backbone

    def entry_point(
        pretrained: bool = False, pretrained_cfg_overlay: dict[str, Any] | None = None, **options: Any
    ) -> nn.Module:
        from timm.models._builder import build_model_with_cfg

        own = variant(model).preprocessing
        layers = {key: own[key] for key in ("num_classes", "first_conv", "classifier")}
        built: nn.Module = build_model_with_cfg(
            build,
            name,
            pretrained,
            pretrained_cfg_overlay=layers | (pretrained_cfg_overlay or {}),
            feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
            pretrained_filter_fn=_filtered,
            **options,
        )
        return built

    entry_point.__name__ = name
    entry_point.__doc__ = f"anyres' {model}; see anyres.create_model."
    return entry_point


def _filtered(state: dict[str, Any], model: Backbone) -> dict[str, Tensor]:
    """A file's state dict in the model's names and on its grid."""
    from anyres.models.weights import unwrap

    return model.adapt_state(unwrap(state, "the weights' file"))
