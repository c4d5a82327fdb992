"""What a key of a recipe means: ``anyres show --explain KEY``, and the same for every key as a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from anyres.config import UserError, nearest
from anyres.recipe import Recipe, dump_recipe, list_recipes, recipe_settings
from anyres.settings import REQUIRED, Setting, as_yaml, fields_of, group_in

MANY = 20
"""Values of one key in the package's recipes: more of them are counted, not listed."""


def explain(key: str, recipe: Recipe | None = None) -> str:
    """A key, the keys of a group, or the keys that end so, each with range, default, meaning and the recipes that set
    it otherwise; with a ``recipe`` also its value there. Raises UserError naming the nearest key."""
    known = recipe_settings()
    if key.startswith("model.") and key != "model.name":
        return _explain_model(key.removeprefix("model."), recipe)
    key = "model" if key == "model.name" else key
    within = (f"{key}.", f"{key}[].")
    found = [setting for name, setting in known.items() if name == key or name.startswith(within)]
    found = found or [setting for name, setting in known.items() if name.split(".")[-1] == key]
    if not found:
        leaves = {name.split(".")[-1] for name in known}
        raise UserError(f"{key!r} is not a key{nearest(key, [*known, *leaves])} (docs/settings.md has all)")
    used = set_by_recipes()
    return "\n".join(line for setting in found for line in _lines(setting, used.get(setting.name, {}), recipe))


def _explain_model(option: str, recipe: Recipe | None) -> str:
    """An option of a recipe's family."""
    if recipe is None:
        raise UserError(f"model.{option} is an option of a family: name a model too, as `anyres show deit_small`")
    from anyres.models import variant

    about = variant(str(recipe.model["name"]))
    own = {setting.name: setting for setting in fields_of(type(about.config))}
    if option not in own:
        raise UserError(f"{about.family} has no option {option!r}{nearest(option, own)} (known: {', '.join(own)})")
    usual = getattr(about.config, option)
    setting = own[option]._replace(name=f"model.{option}", default=usual)
    return "\n".join(_lines(setting, {}, None))


def _lines(setting: Setting, used: Mapping[str, Sequence[str]], recipe: Recipe | None) -> Iterator[str]:
    yield f"{setting.name}: {setting.meaning}" if setting.meaning else setting.name
    usual = "must be given" if setting.default is REQUIRED else f"default {as_yaml(setting.default)}"
    yield f"  {setting.allowed}; {usual}"
    if recipe is not None and "[]" not in setting.name:
        yield f"  here: {as_yaml(_held(recipe, setting.name))}"
    yield from (f"  {line}" for line in users(setting, used))


def users(setting: Setting, used: Mapping[str, Sequence[str]]) -> list[str]:
    """Which recipes of the package set a key to which other values, a line for each value, as ``0.1 in deit/*``."""
    every = list_recipes()
    if len(used) > MANY or (used and (setting.allowed == "map" or group_in(setting.kind)[0])):
        return [f"{len(used)} values in {sum(map(len, used.values()))} of {len(every)} recipes"]
    return [f"{value} in {', '.join(families(names, every))}" for value, names in used.items()]


def families(names: Collection[str], every: Iterable[str]) -> list[str]:
    """Recipes by their folder: all of it as ``deit/*``, most of it as ``deit/* but base_384``, else name by name."""
    found = []
    for folder, group in groupby(every, lambda name: name.rpartition("/")[0]):
        whole = [name.rpartition("/")[2] for name in group]
        inside = [name for name in whole if f"{folder}/{name}".lstrip("/") in names]
        others = [name for name in whole if name not in inside]
        if folder and 0 < 2 * len(others) < len(inside):
            found.append(f"{folder}/* but {' and '.join(others)}")
        elif folder and inside and not others:
            found.append(f"{folder}/*")
        else:
            found += [f"{folder}/{name}".lstrip("/") for name in inside]
    return found


@cache
def set_by_recipes() -> dict[str, dict[str, list[str]]]:
    """Key -> a value other than the default, as YAML -> the recipes of the package whose file says so."""
    root, found = Path(str(files("anyres.recipes"))), defaultdict[str, dict[str, list[str]]](dict)
    settings = recipe_settings()
    usual = {name: as_yaml(setting.default) for name, setting in settings.items()}
    for recipe in list_recipes():
        for name, value in _given(yaml.safe_load((root / f"{recipe}.yaml").read_text("utf-8")), settings):
            text = as_yaml(_as_kept(value, settings[name].default))
            if text != usual[name]:
                found[name].setdefault(text, []).append(recipe)
    return dict(found)


def _given(values: Mapping[str, Any], known: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that plain values give, by their whole name."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in known:
            yield name, value
        if isinstance(value, dict):
            yield from _given(value, known, f"{name}.")


def _as_kept(value: Any, like: Any) -> Any:
    """A value as the recipe holds it: numbers as the default's type, sizes as text."""
    if isinstance(value, list) and isinstance(like, tuple):
        return [_as_kept(each, like[0]) if like else each for each in value]
    if isinstance(like, float | str) and isinstance(value, int | float):
        return type(like)(value)
    return value


def _held(recipe: Recipe, key: str) -> Any:
    """What a recipe holds under ``optim.lr``; None below a group that is null."""
    value: Any = yaml.safe_load(dump_recipe(recipe))
    for part in key.split("."):
        value = None if value is None else value[part]
    return value
