"""Our models under timm's roof: after ``import anyres``, ``timm.create_model`` also builds every name that timm lacks.

timm's own machinery does its part there: ``features_only``, ``pretrained`` and its cache, tags (``S60.224_1k``),
``hf-hub:`` ids. Names that timm has are left alone. Only names are registered; no model is built or imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.contract import Backbone
from anyres.models.index import Weights, known_weights
from anyres.models.registry import aliases, list_models, native, new_model, variant, when_registered

__all__: list[str] = []  # timm writes the registered names here
default_cfgs: dict[str, Any] = {}
"""timm looks here for a name's DefaultCfg: the transform and address of each known set of weights."""


def register() -> None:
    """Registers every official and tidy name that timm does not have, and those of families that come later.

    A second call does nothing.
    """
    from timm.models import is_model, register_model
    from timm.models._pretrained import DefaultCfg, PretrainedCfg

    if register not in when_registered:
        when_registered.append(register)
    for name, model in {**{name: name for name in list_models()}, **aliases()}.items():
        if is_model(name):
            continue
        rows = sorted(known_weights(model), key=lambda row: row.url is None)  # the first is timm's default
        cfgs = {row.name.partition(".")[2]: _cfg(model, row) for row in rows} or {"": _cfg(model)}
        default_cfgs[name] = DefaultCfg([*cfgs], {tag: PretrainedCfg(**cfg) for tag, cfg in cfgs.items()})
        register_model(_entry_point(name, model))


def _cfg(model: str, row: Weights | None = None) -> dict[str, Any]:
    """timm's description of a model, and of a set of its weights."""
    classes, side = native(model)
    if row:
        side = row.img_size
    cfg: dict[str, Any] = {"num_classes": classes, "input_size": (3, side, side)}
    if row is None:
        return cfg
    return cfg | {
        "url": row.url,
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
        num_classes: int | None = None,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        global_pool: str | None = None,
        **options: Any,
    ) -> Backbone:
        if drop_rate:
            raise UserError(f"{name} has no dropout: drop_rate must be 0 (drop_path_rate is stochastic depth)")
        if drop_path_rate or "drop_path" in {field.name for field in fields(variant(model).config)}:
            options["drop_path"] = drop_path_rate
        backbone = new_model(model, num_classes, **options)
        if global_pool is not None:
            backbone.reset_classifier(backbone.num_classes, global_pool)
        return backbone

    def entry_point(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **options: Any,
    ) -> nn.Module:
        from timm.models._builder import build_model_with_cfg, resolve_pretrained_cfg

        about = variant(model)
        overlay = {key: about.preprocessing[key] for key in ("first_conv", "classifier")}
        overlay |= pretrained_cfg_overlay or {}
        if "img_size" in {field.name for field in fields(about.config)}:  # the grid of the weights' own position table
            size = resolve_pretrained_cfg(name, pretrained_cfg, overlay).input_size[1:]
            options = {"img_size": tuple(size), **options}
        built: nn.Module = build_model_with_cfg(
            build,
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3)},
            pretrained_filter_fn=_filtered,
            **options,
        )
        return built

    entry_point.__name__ = name
    entry_point.__doc__ = f"anyres' {model}; see anyres.create_model."
    return entry_point


def _filtered(state: dict[str, Any], model: Backbone) -> dict[str, Tensor]:
    """A file's state dict in the model's names and on its grid; without its head if that is of other classes.

    timm then fits the first convolution and the head. Raises UserError for what fits in no other way: timm would not
    always say so.
    """
    from anyres.models.state_files import unwrap
    from anyres.models.weights import faults, head_keys

    state, own = model.convert_state_dict(unwrap(state, "the weights' file")), model.state_dict()
    heads = head_keys(model, state)
    first = f"{model.pretrained_cfg['first_conv']}.weight"
    if wrong := faults(state, own, leave={first, *heads, *head_keys(model, own)}):
        raise UserError(f"the weights do not fit {model.pretrained_cfg['architecture']}: {wrong}")
    if all(key in own and own[key].shape == state[key].shape for key in heads):
        return state
    return {key: tensor for key, tensor in state.items() if key not in heads}
