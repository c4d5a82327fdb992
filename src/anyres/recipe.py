"""A recipe: every room's configuration composed into one value, read from YAML and ``key=value``, written back whole.

Defaults stand in the dataclasses, a YAML file states what differs, the command line has the last word. An unknown
key is one line that names the nearest known one. The only module that knows pydantic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, is_dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from anyres.config import UserError, config, nearest, override, printable
from anyres.data.augment_config import AugmentConfig
from anyres.data.clip_config import ClipConfig
from anyres.data.mix_config import MixConfig
from anyres.data.normalization import IMAGENET_MEAN, IMAGENET_STD, normalization
from anyres.data.views_config import ViewsConfig
from anyres.flow import MOST_SIDE, Size, parse_sizes
from anyres.models.registry import is_model, model_names, variant
from anyres.settings import Setting, all_settings, from_habit
from anyres.storage import read_bytes
from anyres.training.objective_config import ObjectiveConfig
from anyres.training.plan import TrainConfig
from anyres.training.schedule import OptimConfig

if TYPE_CHECKING:
    from anyres.tasks import Configs

MOST_WORKERS = 512
"""Loader processes of a process."""
MOST_CHANNELS = 1024
"""Of an image: several times what a hyperspectral camera has."""
MOST_NUMBER = 2**53
"""Of a whole number: beyond it, floats and seeds are no longer exact."""


@config
class Claim:
    """What the recipe is expected to give."""

    # where that is said
    source: str = ""
    # top-1 in percent by size, as "224": 82.2; of nearest neighbors where there are no labels
    top1: dict[str, float] = field(default_factory=dict)


@config
class DataConfig:
    """Where images come from, and how they are loaded."""

    # images in any form that `anyres data` lists
    source: str | None = None
    # the split to train on
    train_split: Literal["train", "trainval"] = "train"
    # the split that is scored
    eval_split: Literal["val", "test"] = "val"
    # share of the training images that is held out where there is no val split
    val_share: float = 0.2
    # images of a step, over all processes; auto: the largest power of two that the memory takes, at most 1,024 and a
    # quarter of the training images; the run keeps the number that was found
    batch_size: int | Literal["auto"] = 128
    # every class comes equally often in an epoch, which keeps its length: images of rare ones several times, with other
    # draws, and of common ones not all (images of one label each)
    balance: bool = False
    # each image comes so many times in a row with other draws, and an epoch keeps its length (repeated augmentation: 3)
    repeats: int = 1
    # loader processes per process (null: chosen by the data and the machine)
    workers: int | None = None
    # images are kept decoded in memory with this short side when all fit into cache_gib (null: never)
    cache_side: int | None = None
    # memory for that, in GiB
    cache_gib: float = 2.0
    # training JPEGs whose short side is at least twice the largest view's are decoded at 1/2, 1/4 or 1/8 of their size
    dct: bool = False
    # share of the images that may be unreadable (they are left out and named); ten always may, unless it is 0
    max_unreadable: float = 0.01
    # share of the annotations, and of the pictures with annotations, that may be faulty (they are left out and named);
    # ten always may, unless it is 0
    max_faulty: float = 0.01
    # training pictures without an object are left out; else they are learned from too: nothing is to be found there
    drop_empty: bool = False
    # pictures with boxes are cut into parts of about so many pixels a side, each a picture (null: they stay whole)
    tile: int | None = None
    # of every image (null: what the files agree on, 3 where they do not)
    channels: int | None = None
    # of each channel, in [0, 1]
    mean: tuple[float, ...] = IMAGENET_MEAN
    # of each channel, above 0
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"data.batch_size={self.batch_size} must be 1 or more, or auto")
        if self.repeats < 1:
            raise ValueError(f"data.repeats={self.repeats} must be 1 (off) or more, as 3")
        if self.workers is not None and not 0 <= self.workers <= MOST_WORKERS:
            raise ValueError(f"data.workers={self.workers} must be 0 or more and at most {MOST_WORKERS}, or null")
        for name, most in (("cache_side", MOST_SIDE), ("tile", MOST_SIDE), ("channels", MOST_CHANNELS)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"data.{name}={value} must be 1 to {most}, or null")
        if not self.cache_gib >= 0:
            raise ValueError(f"data.cache_gib={self.cache_gib} must be 0 or more")
        if not 0 < self.val_share < 1:
            raise ValueError(f"data.val_share={self.val_share} must lie between 0 and 1, as 0.2 does")
        for name in ("max_unreadable", "max_faulty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name}={getattr(self, name)} is a share: 0 to 1")
        if not self.mean or not self.std:
            raise ValueError("data.mean and data.std must have one value, or one for each channel")
        if self.channels is not None:
            normalization(self.mean, self.std, self.channels)  # raises
        if not min(self.std) > 0:
            raise ValueError(f"data.std={list(self.std)} must be above 0 in every channel")

    @property
    def step_images(self) -> int:
        """``batch_size`` where it is a number. Raises UserError for ``auto``."""
        if self.batch_size == "auto":
            raise UserError("data.batch_size=auto is found when a training begins: give a number here")
        return self.batch_size


@config
class EvalConfig:
    """How a model is scored."""

    # scored at the end and named in the report
    sizes: tuple[str | int, ...] = ("224",)
    # center-crop ratio, above 0 to 1 (null: the model's own); boxes and maps are scored on whole images
    crop: float | None = None
    # of the resizing (null: the model's own)
    interpolation: Literal["bicubic", "bilinear"] | None = None
    # the whole image is resized to the size whatever its shape, instead of cropped, or, for boxes and maps, instead of
    # fitted into the size with its shape kept: at every size (true), or where both sides have so many pixels, as 384
    # for ResT
    warp: bool | int = False
    # images at a time
    batch_size: int = 64

    def __post_init__(self) -> None:
        parse_sizes([str(size) for size in self.sizes])
        if self.batch_size < 1:
            raise ValueError(f"evaluate.batch_size={self.batch_size} must be 1 or more")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"evaluate.crop={self.crop} must be above 0 and at most 1, or null")
        if not isinstance(self.warp, bool) and self.warp < 1:
            raise ValueError(f"evaluate.warp={self.warp} must be true, false, or 1 px or more, as 384")

    def warps(self, size: Size) -> bool:
        """Whether an image is resized to this size whatever its shape."""
        return self.warp if isinstance(self.warp, bool) else min(size) >= self.warp


@config
class Recipe:
    """A whole training run."""

    # `name`, and any option of that family's configuration
    model: dict[str, Any]
    # what it starts from: anything anyres.load_weights takes, such as deit_base.224, a file or a run folder
    weights: str | None = None
    # auto: by the labels and the objective; classify, multilabel, unlabelled, segment, detect, video, or yours
    task: str = "auto"
    # options of what the task builds on the backbone: of segment, detect and video, those of anyres.create_task_model
    head: dict[str, Any] = field(default_factory=dict)
    claim: Claim = field(default_factory=Claim)
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if self.objective.loss == "bce" and self.mix.smoothing:
            raise ValueError(
                f"mix.smoothing={self.mix.smoothing} gives every class a share, and objective.loss=bce takes each "
                "share for wholly right: set mix.smoothing=0"
            )
        if self.data.balance and self.objective.class_weights != "none":
            raise ValueError("data.balance and objective.class_weights both make rare classes count more: choose one")
        self.views.plan(self.augment)  # raises where a group's colours and augment's exclude each other
        if self.data.batch_size != "auto" and self.train.accumulate > self.data.batch_size:
            raise ValueError(
                f"train.accumulate={self.train.accumulate} splits each step's data.batch_size={self.data.batch_size} "
                "images: give at most as many"
            )
        seen, sizes = self.objective.views_per_step, len(self.views.sizes)
        if seen is not None and seen > sizes:
            raise ValueError(f"objective.views_per_step={seen}, but views.sizes has {sizes}: give at most as many")
        if self.task != "auto" or self.objective.chosen == "dino":  # else the images decide on the task
            from anyres.tasks import check  # with torch

            check(self.task, self.configs)

    @property
    def configs(self) -> Configs:
        """The parts that have to suit a task."""
        from anyres.tasks import Configs  # with torch

        return Configs(self.objective, self.views, self.mix, self.optim, self.train, self.head)


_ADAPTER = TypeAdapter(Recipe)


def list_recipes() -> dict[str, str]:
    """Every recipe shipped with the package: name (``resformer/small_mr``) -> the first line of its opening comment."""
    root = Path(str(files("anyres.recipes")))
    return {
        path.relative_to(root).with_suffix("").as_posix(): path.read_text("utf-8").splitlines()[0].lstrip("# ")
        for path in sorted(root.rglob("*.yaml"))
    }


def recipe_settings() -> dict[str, Setting]:
    """Every key of a recipe, as ``optim.lr``; those of a list of groups as ``views.groups[].size``."""
    return {setting.name: setting for setting in all_settings(Recipe)}


def load_recipe(source: str, overrides: Sequence[str] = (), texts: Mapping[str, str] | None = None) -> Recipe:
    """A recipe's name, a model's name or a YAML file.

    A model's name stands for the recipe ``finetune`` with that model where weights are given, else ``nano`` for the
    small models of ours, or ``folder``.

    ``overrides`` are ``key.path=value``: YAML, but for keys that hold text, such as paths, which are taken as they are
    (``data.source=2024``, ``data.source=[v2]``; ``null`` is none). ``texts``: key -> a value that is taken as it is in
    any case. Raises UserError for an unknown name, key or value.
    Other programs' words for a key are taken too: ``epochs=5`` (``anyres.settings.HABITS``).
    """
    overrides = list(map(from_habit, overrides))
    named = [(texts or {}).get("weights"), *(text[8:] for text in overrides if text.startswith("weights="))]
    tuned = any(name not in (None, "", "null", "~") for name in named)
    values, what = _find(source, tuned=tuned)
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"{text!r} is not KEY=VALUE, as in optim.lr=3e-4")
        _set(values, key, _value(key, value))
    for key, value in (texts or {}).items():
        _set(values, key, value)
    return build_recipe(values, what)


def build_recipe(given: Mapping[str, Any], what: str) -> Recipe:
    """Plain values -> Recipe. Raises UserError with one line for the first thing that is wrong; ``what`` names it."""
    given = _with_lists(given, Recipe)
    try:
        recipe = _ADAPTER.validate_python(given)
    except ValidationError as error:
        raise UserError(f"{what}: {_explain(error)}") from None
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    _check_numbers(_ADAPTER.dump_python(recipe), what)
    options = dict(recipe.model)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{what}: model.name is missing; name one of `anyres models`")
    about = variant(name)
    known = about.config
    values = {f.name: getattr(known, f.name) for f in fields(known)}
    for key, value in options.items():
        if key in ("num_classes", "in_chans"):
            raise UserError(f"{what}: model.{key} is decided by the images and their classes: leave it out")
        if key not in values:
            override(known, {key: value}, f"{what}: {name}")  # raises, naming the nearest
    try:
        checked = TypeAdapter(type(known)).validate_python(values | options)
    except ValidationError as error:
        raise UserError(f"{what}: {_explain(error, 'model.')}") from None
    if recipe.objective.cosub and not getattr(checked, "drop_path", 0):
        raise UserError(f"{what}: with model.drop_path=0 cosub's two passes are one: set model.drop_path, as 0.1")
    chosen = {key: getattr(checked, key) for key in options}
    _check_numbers(chosen, what, "model")
    recipe = replace(recipe, model={"name": about.name if about.foreign else name, **chosen})
    data, own = dict(given.get("data") or {}), about.preprocessing
    seen: dict[str, Any] = {key: tuple(own[key]) for key in ("mean", "std") if key not in data and len(own[key]) == 3}
    if own.get("crop_mode") == "squash" and "warp" not in (given.get("evaluate") or {}):
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, warp=True))
    return replace(recipe, data=replace(recipe.data, **seen))


def _with_lists(given: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """Plain values in which one value for a list is a list of one, as ``128`` for ``views.sizes``, and ``128,96`` of
    two."""
    made = dict(given)
    for key, kind in _fields(group).items():
        value = made.get(key)
        if isinstance(value, Mapping) and _fields(kind):
            made[key] = _with_lists(value, kind)
        elif isinstance(value, str | int | float) and _is_list(kind):
            made[key] = [part.strip() for part in value.split(",")] if isinstance(value, str) else [value]
    return made


def _is_list(kind: Any) -> bool:
    """Whether a type is a list, of any length, of plain values."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is ... and not is_dataclass(get_args(kind)[0])


def _check_numbers(value: Any, what: str, key: str = "") -> None:
    """Raises UserError for a number that is not finite, or beyond any use, anywhere in plain values."""
    if isinstance(value, dict):
        for part, below in value.items():
            _check_numbers(below, what, f"{key}.{part}" if key else str(part))
    elif isinstance(value, list | tuple):
        for below in value:
            _check_numbers(below, what, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what}: {key}={value} is not a finite number: give one")
    elif isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise UserError(f"{what}: {key} is beyond 2^53: give a smaller number")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every value written out; reads back equal."""
    return yaml.safe_dump(_ADAPTER.dump_python(recipe, mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(path: Path) -> Recipe:
    """A recipe file, also of an earlier version. Raises UserError when it is missing, not YAML, or not a recipe."""
    values = _read(path)
    objective = values.get("objective")
    dino = objective.get("dino") if isinstance(objective, dict) else None
    if isinstance(dino, dict) and "centre_momentum" in dino:
        dino["center_momentum"] = dino.pop("centre_momentum")
    return build_recipe(values, str(path))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The keys in which two recipes differ, each as ``key: old -> new``."""
    a, b = flat(old), flat(new)
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe, such as ``optim.lr``, with its plain value."""
    return _flatten(_ADAPTER.dump_python(recipe, mode="json"))


def _find(source: str, *, tuned: bool = False) -> tuple[dict[str, Any], str]:
    known = list_recipes()
    root = Path(str(files("anyres.recipes")))
    if source.endswith((".yaml", ".yml")):
        return _read(Path(source)), source
    if source in known:
        return _read(root / f"{source}.yaml"), f"recipe {source}"
    if is_model(source):
        ours = variant(source).ours
        values = _read(root / ("finetune.yaml" if tuned else "nano.yaml" if ours else "folder.yaml"))
        if tuned and ours:  # which are made for small images
            nano = _read(root / "nano.yaml")
            values |= {group: nano[group] for group in ("data", "views", "evaluate")}
        values["model"] = {"name": source}
        return values, f"model {source}"
    hint = nearest(source, [*known, *model_names()])
    raise UserError(f"{source!r} is neither a recipe (`anyres recipes`) nor a model (`anyres models`){hint}")


MOST_BYTES = 2**20
"""Of a recipe's file: a hundred times the longest."""


class _PlainLoader(yaml.SafeLoader):
    """YAML of values: no alias, of which a page can mean more than a machine's memory holds, and no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias (*name) is not taken: write the value out", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        written = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in written.most_common(1):
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    """YAML -> plain values. Raises ValueError."""
    try:
        return yaml.load(text, Loader=_PlainLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: of a date or a number that is none
        raise ValueError(printable(" ".join(str(error).split()), 500)) from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _parse(read_bytes(path, MOST_BYTES).decode())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a recipe: a mapping with `model:` is expected")
    return values


def _value(key: str, text: str) -> Any:
    """What KEY=TEXT means: YAML, or the text itself where the key holds text and nothing else."""
    try:
        value = _parse(text)
    except ValueError:
        return text
    quoted = text.strip()[:1] in ("'", '"')
    if not _holds_text(key.split(".")) or (quoted and isinstance(value, str)):
        return value
    return None if text.strip() in ("", "~", "null", "Null", "NULL") else text


def _holds_text(path: Sequence[str]) -> bool:
    """Whether the key at ``path`` holds text, or none."""
    *groups, leaf = path
    kind = _hints(groups).get(leaf)
    return kind is str or (isinstance(kind, UnionType) and set(get_args(kind)) == {str, type(None)})


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for part in path:
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise UserError(f"{key!r}: {part!r} is a value, not a group of keys")
    values[leaf] = value


def _explain(error: ValidationError, group: str = "") -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if not str(part).startswith(("function-", "tuple", "dict"))]
    if path and (path[-1] in ("int", "float", "bool", "str") or path[-1].startswith("literal[")):
        path.pop()  # which of several types it was tried as
    key = group + ".".join(path)
    if first["type"] == "unexpected_keyword_argument":
        return f"{key!r} is not a key{nearest(path[-1], _keys(path[:-1]))}"
    said = first["msg"].removeprefix("Value error, ")
    given = printable(repr(first["input"]), 200)
    if first["type"] == "value_error":
        return said
    setting = recipe_settings().get(key)
    may_be = f"; it takes: {setting.allowed}" if setting is not None and first["type"] != "literal_error" else ""
    return f"{key or 'recipe'}: {said} (given: {given}{may_be})"


def _keys(path: Sequence[str]) -> list[str]:
    """The known keys of the group at ``path``."""
    return list(_hints(path))


def _hints(path: Sequence[str]) -> dict[str, Any]:
    """The known keys of the group at ``path`` with their types; {} where it is no configuration."""
    group: Any = Recipe
    for part in path:
        if is_dataclass(group):
            group = get_type_hints(group).get(part)
        elif get_origin(group) is tuple and part.isdigit():
            group = get_args(group)[0]
        if isinstance(group, UnionType):  # of a configuration and None
            group = get_args(group)[0]
    return _fields(group)


@cache
def _fields(group: Any) -> dict[str, Any]:
    """The fields of a configuration with their types; {} where it is none."""
    if isinstance(group, UnionType):  # of a configuration and None
        group = get_args(group)[0]
    return (
        {f.name: kind for f in fields(group) if (kind := get_type_hints(group)[f.name])} if is_dataclass(group) else {}
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
