"""Names to models: which there are, what was published of them, and how to build one. Listing imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyres.config import UserError, nearest, override
from anyres.models.index import Weights, known_weights
from anyres.models.zoo import ALIASES, FAMILIES, OURS, Facts

if TYPE_CHECKING:
    import anyres.models.contract


@dataclass(frozen=True)
class Variant:
    """What is known of a model before it is built.

    ``config`` is the family's frozen dataclass; ``preprocessing`` timm's keys (input_size, mean, std, interpolation,
    crop_pct); ``aliases``: tidy names beside the official one; ``ours``: in no paper, made for small machines;
    ``weights``: what was published of it.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    ours: bool
    facts: Facts
    weights: tuple[Weights, ...]
    config: Any
    preprocessing: dict[str, Any]


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
        aliases=tuple(alias for alias, of in ALIASES.items() if of == official),
        ours=official in OURS,
        facts=FAMILIES[family][official],
        weights=known_weights(official),
        config=config,
        preprocessing=module.preprocessing(config),
    )


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    pretrained: str | Path | bool = False,
    replace_head: bool = False,
    **options: Any,
) -> anyres.models.contract.Backbone:
    """A model by its official or tidy name, in training mode, freshly initialised or with published or own weights.

    ``num_classes`` is the model's own if None: 1000, but 0 (no head) for DINO's. ``options`` are fields of the family's
    configuration, such as ``drop_path=0.1``. ``pretrained`` is anything ``load_weights`` takes, or True for the first
    known weights; a set of the index (``"deit3_small.384"``) also sets ``img_size``, where the family has one and
    none is given. ``replace_head`` leaves the weights' classifier aside, for other classes.
    Raises UserError for an unknown name or option, and for weights that cannot be had or do not fit.
    """
    official, family = _resolve(name)
    module = import_module(f"anyres.models.{family}")
    config = module.VARIANTS[official]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if num_classes is not None:
        values["num_classes"] = num_classes
    source = _first_weights(official) if pretrained is True else pretrained
    row = next((row for row in known_weights(official) if row.name == source), None)
    if row and "img_size" in {field.name for field in fields(config)}:
        values = {"img_size": row.img_size, **values}
    model: anyres.models.contract.Backbone = module.Model(override(config, values, official))
    model.pretrained_cfg["architecture"] = official
    if source:
        from anyres.models.weights import load_weights

        load_weights(model, source, replace_head=replace_head)
    return model


def _first_weights(official: str) -> str:
    """The name of the first known weights, preferably of some that can be fetched."""
    rows = known_weights(official)
    if not rows:
        raise UserError(f"no weights of {official} were published: give a file's path")
    return next((row for row in rows if row.url), rows[0]).name


def _resolve(name: str) -> tuple[str, str]:
    official = ALIASES.get(name, name)
    for family, names in FAMILIES.items():
        if official in names:
            return official, family
    known = [*list_models(), *ALIASES]
    raise UserError(f"there is no model {name!r}{nearest(name, known)} (`anyres models` lists all)")
