"""Names to models: which there are, what was published of them, and how to build one. Listing imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyres.config import UserError, nearest, override

if TYPE_CHECKING:
    import anyres.models.contract


@dataclass(frozen=True)
class Claim:
    """A published row: top-1 in percent on ImageNet-1k by the size tested, and how those weights were trained."""

    trained: str
    top1: Mapping[int, float]
    source: str


@dataclass(frozen=True)
class Variant:
    """What is known of a model before it is built.

    ``config`` is the family's frozen dataclass; ``preprocessing`` timm's keys (input_size, mean, std, interpolation,
    crop_pct); ``ours``: in no paper, made for small machines; ``alias``: the tidy name, if the official one is longer.
    """

    name: str
    family: str
    alias: str | None
    ours: bool
    claims: tuple[Claim, ...]
    config: Any
    preprocessing: dict[str, Any]


FAMILIES = {
    "resformer": ("resformer_tiny_patch16", "resformer_small_patch16", "resformer_base_patch16", "resformer_nano"),
    "restv2": ("restv2_tiny", "restv2_small", "restv2_base", "restv2_large", "restv2_nano"),
    "resmlp": ("resmlp_12", "resmlp_24", "resmlp_nano"),
}
"""Module of ``anyres.models`` -> the names of its VARIANTS (a test keeps the two equal)."""

ALIASES = {
    "resformer_tiny": "resformer_tiny_patch16",
    "resformer_small": "resformer_small_patch16",
    "resformer_base": "resformer_base_patch16",
    "resmlp_s12": "resmlp_12",
    "resmlp_s24": "resmlp_24",
}
"""Tidy name -> official name."""

OURS = frozenset({"resformer_nano", "restv2_nano", "resmlp_nano"})
"""In no paper, and without a published number."""


def _resformer(*top1: float) -> dict[int, float]:
    return dict(zip((96, 112, 128, 160, 192, 224, 288, 384, 448, 512, 640), top1, strict=True))


_MR = "at 128, 160 and 224 px"
_TABLE_1 = "ResFormer paper, table 1"
_RESTV2, _FINE = "ResTv2 repository", "at 224 px, fine-tuned at 384 px"
_RESMLP = "ResMLP paper, table 1"
CLAIMS: dict[str, tuple[Claim, ...]] = {
    "resformer_tiny_patch16": (
        Claim(_MR, _resformer(61.40, 64.93, 67.78, 71.09, 72.97, 73.85, 74.85, 75.04, 74.39, 73.77, 71.65), _TABLE_1),
    ),
    "resformer_small_patch16": (
        Claim(_MR, _resformer(73.59, 76.64, 78.24, 80.39, 81.42, 82.16, 82.70, 82.72, 82.52, 82.00, 80.72), _TABLE_1),
        Claim(
            "at 128, 224 and 384 px",
            {96: 72.92, 128: 77.84, 160: 80.09, 224: 82.28, 384: 83.70, 512: 83.86},
            "ResFormer repository",
        ),
    ),
    "resformer_base_patch16": (
        Claim(_MR, _resformer(75.86, 78.42, 79.74, 81.52, 82.28, 82.72, 83.02, 83.29, 82.90, 82.63, 81.72), _TABLE_1),
    ),
    "restv2_tiny": (Claim("at 224 px", {224: 82.3}, _RESTV2), Claim(_FINE, {384: 83.7}, _RESTV2)),
    "restv2_small": (Claim("at 224 px", {224: 83.2}, _RESTV2), Claim(_FINE, {384: 84.5}, _RESTV2)),
    "restv2_base": (Claim("at 224 px", {224: 83.7}, _RESTV2), Claim(_FINE, {384: 85.1}, _RESTV2)),
    "restv2_large": (Claim("at 224 px", {224: 84.2}, _RESTV2), Claim(_FINE, {384: 85.4}, _RESTV2)),
    "resmlp_12": (Claim("at 224 px", {224: 76.6}, _RESMLP), Claim("at 224 px, distilled", {224: 77.8}, _RESMLP)),
    "resmlp_24": (Claim("at 224 px", {224: 79.4}, _RESMLP), Claim("at 224 px, distilled", {224: 80.8}, _RESMLP)),
}
"""Official name -> published rows."""


def list_models(pattern: str = "*") -> list[str]:
    """Official names, sorted, of models whose official or tidy name matches a shell pattern such as ``"restv2_*"``."""
    known = [name for names in FAMILIES.values() for name in names]
    tidy = {ALIASES[alias] for alias in ALIASES if fnmatchcase(alias, pattern)}
    return sorted(name for name in known if name in tidy or fnmatchcase(name, pattern))


def variant(name: str) -> Variant:
    """What is known of a model, by its official or tidy name. Raises UserError naming the nearest if there is none."""
    official, family = _resolve(name)
    module = import_module(f"anyres.models.{family}")
    config = module.VARIANTS[official]
    return Variant(
        name=official,
        family=family,
        alias=next((alias for alias, of in ALIASES.items() if of == official), None),
        ours=official in OURS,
        claims=CLAIMS.get(official, ()),
        config=config,
        preprocessing=module.preprocessing(config),
    )


def create_model(
    name: str, num_classes: int = 1000, *, pretrained: str | Path | None = None, **options: Any
) -> anyres.models.contract.Backbone:
    """A model by its official or tidy name, in training mode, freshly initialised or with the weights of a file.

    ``options`` are fields of the family's configuration, such as ``drop_path=0.1``; ``pretrained`` is anything
    ``load_weights`` takes. Raises UserError for an unknown name or option, and for a file that does not fit.
    """
    official, family = _resolve(name)
    module = import_module(f"anyres.models.{family}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    config = override(module.VARIANTS[official], {"num_classes": num_classes, **values}, official)
    model: anyres.models.contract.Backbone = module.Model(config)
    model.pretrained_cfg["architecture"] = official
    if pretrained is not None:
        from anyres.models.weights import load_weights

        load_weights(model, pretrained)
    return model


def _resolve(name: str) -> tuple[str, str]:
    official = ALIASES.get(name, name)
    for family, names in FAMILIES.items():
        if official in names:
            return official, family
    known = [*list_models(), *ALIASES]
    raise UserError(f"there is no model {name!r}{nearest(name, known)} (`anyres models` lists all)")
