"""Names to models: the families of this package, of other packages, and of timm and torchvision by a prefix.

A family is a module that holds ``Model``, a ``Backbone`` that is called with a configuration; ``VARIANTS``, name to
configuration, each a frozen dataclass with ``num_classes`` and ``in_chans``; ``preprocessing``, a configuration to
timm's ``pretrained_cfg``; and, where names have tidy forms, ``ALIASES``. Listing imports no torch, unless another
package brings a family.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

from anyres.config import UserError, first_line, nearest, override
from anyres.models import zoo
from anyres.models.index import Weights, known_weights
from anyres.models.zoo import ModelStats

if TYPE_CHECKING:
    from anyres.models.contract import Backbone, Traits

log = logging.getLogger(__name__)

ENTRY_POINTS = "anyres.families"
"""The entry-point group in which another package names its families' modules."""
FOREIGN = {"timm": "anyres.models.external_timm", "torchvision": "anyres.models.external_torchvision"}
"""Prefix of a name (``timm:NAME`` or ``timm/NAME``) -> the module that wraps that library's models."""
NEEDED = ("Model", "VARIANTS", "preprocessing")
"""What a family's module must hold."""


@dataclass(frozen=True)
class Family:
    """Where a family is defined and what its models are called. ``stats``: their cost, None where nobody wrote it."""

    name: str
    module: str
    stats: Mapping[str, ModelStats | None]
    aliases: Mapping[str, str]


_registered: dict[str, Family] = {}
when_registered: list[Callable[[], None]] = []
"""Called after each ``register_family``: by whom names are copied elsewhere, as to timm."""


@dataclass(frozen=True)
class Variant:
    """What is known of a model before it is built.

    ``config`` is the family's frozen dataclass; ``preprocessing`` timm's keys (input_size, mean, std, interpolation,
    crop_pct); ``aliases``: tidy names beside the official one; ``ours``: in no paper, made for small machines;
    ``stats``: its cost, None for a model from elsewhere; ``weights``: what was published of it; ``foreign``: a model of
    another library, by its prefix.
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    ours: bool
    stats: ModelStats | None
    weights: tuple[Weights, ...]
    config: Any
    preprocessing: dict[str, Any]
    traits: Traits
    foreign: bool


def register_family(module: ModuleType) -> None:
    """Make the models of a family of your own known by name, for this process, everywhere: in `create_model`, recipes,
    the command line, timm and torch.hub. A second call with the same module does nothing.

    ``module``: see this module's docstring. To have a family known in every process, let its package name the module
    in the entry-point group ``anyres.families``. Raises UserError for a module without what a family needs, and for a
    name that another family has.
    """
    missing = [name for name in NEEDED if name not in vars(module)]
    if missing:
        raise UserError(f"{module.__name__} is no family of models: it has no {missing[0]}")
    name = module.__name__
    others = [family for family in (*_own(), *_registered.values()) if family.name != name]
    known = {each: family.name for family in others for each in _names(family)}
    aliases: dict[str, str] = vars(module).get("ALIASES", {})
    for each in (*module.VARIANTS, *aliases):
        if each in known:
            raise UserError(f"{name} calls a model {each!r}, as {known[each]} does: choose another name")
        if ":" in each or "/" in each:
            raise UserError(f"{name} calls a model {each!r}: a name has neither a colon nor a slash")
    for alias, official in aliases.items():
        if official not in module.VARIANTS:
            raise UserError(f"{name} has the alias {alias!r} of {official!r}, which is not in its VARIANTS")
    _registered[name] = Family(name, name, dict.fromkeys(module.VARIANTS), aliases)
    for tell in when_registered:
        tell()


def families() -> tuple[Family, ...]:
    """Every family but those of other libraries, this package's first."""
    _load_entry_points()
    return (*_own(), *_registered.values())


def list_models(pattern: str = "*") -> list[str]:
    """Official names, sorted, of models whose official or tidy name matches a shell pattern such as ``"restv2_*"``.

    Models of other libraries are listed where the pattern has their prefix: ``"timm:convnext_*"``.
    """
    prefix, colon, rest = _split(pattern)
    if colon:
        names = (f"{prefix}:{name}" for name in _foreign_names(prefix) if fnmatchcase(name, rest))
        return sorted(names)
    known = [name for family in families() for name in family.stats]
    tidy = {official for alias, official in aliases().items() if fnmatchcase(alias, pattern)}
    return sorted(name for name in known if name in tidy or fnmatchcase(name, pattern))


def aliases() -> dict[str, str]:
    """Tidy name -> official name, of every family."""
    return {alias: official for family in families() for alias, official in family.aliases.items()}


def model_names() -> list[str]:
    """Every official and tidy name, such as a misspelt one may have meant."""
    return [*list_models(), *aliases()]


def is_model(name: str) -> bool:
    """Whether ``name`` is a model's, official or tidy, or has the prefix of another library."""
    return bool(_split(name)[1]) or any(name in _names(family) for family in families())


def official_name(name: str) -> str:
    """The official name of a model. Raises UserError naming the nearest if there is none."""
    return _resolve(name)[0]


def variant(name: str) -> Variant:
    """What is known of a model, by its official or tidy name. Raises UserError naming the nearest if there is none."""
    official, family = _resolve(name)
    module = import_module(family.module)
    config = module.VARIANTS[official]
    return Variant(
        name=official,
        family=family.name,
        aliases=tuple(alias for alias, of in family.aliases.items() if of == official),
        ours=official in zoo.OURS,
        stats=family.stats.get(official),
        weights=known_weights(official),
        config=config,
        preprocessing=module.preprocessing(config),
        traits=module.Model.traits,
        foreign=family.name in FOREIGN,
    )


def known_stats(name: str) -> ModelStats | None:
    """What a model costs; None where nobody wrote it down. Its family is not imported."""
    official, family = _resolve(name)
    return family.stats.get(official)


def native(name: str) -> tuple[int, int]:
    """The classes and the side in pixels that a model has as it comes. A family of this package is not imported."""
    official, family = _resolve(name)
    stats = family.stats.get(official)
    if stats is not None:
        return stats.classes, stats.size
    about = variant(official)
    return about.config.num_classes, about.preprocessing["input_size"][-1]


def new_model(name: str, num_classes: int | None = None, **options: Any) -> Backbone:
    """A model as it is initialised, in training mode; see ``anyres.create_model``."""
    official, family = _resolve(name)
    module = import_module(family.module)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if num_classes is not None:
        values["num_classes"] = num_classes
    model: Backbone = module.Model(override(module.VARIANTS[official], values, official))
    model.pretrained_cfg["architecture"] = official
    return model


def _resolve(name: str) -> tuple[str, Family]:
    prefix, colon, rest = _split(name)
    if colon:
        return f"{prefix}:{rest}", Family(prefix, FOREIGN[prefix], {}, {})
    for family in families():
        official = family.aliases.get(name, name)
        if official in family.stats:
            return official, family
    raise UserError(f"there is no model {name!r}{nearest(name, model_names())} (`anyres models` lists all)")


def _split(name: str) -> tuple[str, str, str]:
    """``timm:NAME`` and ``timm/NAME`` -> (``timm``, ``:``, NAME); any other name: ("", "", name)."""
    for sign in (":", "/"):
        prefix, found, rest = name.partition(sign)
        if found and prefix in FOREIGN:
            return prefix, ":", rest
    return "", "", name


def _foreign_names(prefix: str) -> list[str]:
    return [name.partition(":")[2] for name in import_module(FOREIGN[prefix]).VARIANTS]


def _names(family: Family) -> set[str]:
    return {*family.stats, *family.aliases}


@cache
def _own() -> tuple[Family, ...]:
    return tuple(
        Family(
            name,
            f"anyres.models.{name}",
            stats,
            {alias: official for alias, official in zoo.ALIASES.items() if official in stats},
        )
        for name, stats in zoo.MODEL_STATS.items()
    )


_asked = False


def _load_entry_points() -> None:
    """Register the families of other packages, once. One that cannot be had is left out, and a warning says why."""
    global _asked  # noqa: PLW0603  # set first: a family that is registered with timm asks for the list of models
    if _asked:
        return
    _asked = True
    for point in entry_points(group=ENTRY_POINTS):
        try:
            register_family(point.load())
        except Exception as error:  # whatever another package raises when it is imported
            log.warning("the family %s of %s is left out: %s", point.name, point.value, first_line(error))
