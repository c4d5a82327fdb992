"""What each key of a configuration is: type, default, range and meaning, read from the dataclass that holds it.

Nothing is written down twice: the meaning is the comment of the field in the source, and the range is what the
dataclass accepts, found by trying values.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from anyres.config import UserError

HABITS = {
    "epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "batch": "data.batch_size",
    "batch_size": "data.batch_size",
    "bs": "data.batch_size",
    "imgsz": "views.sizes",
    "img_size": "views.sizes",
    "image_size": "views.sizes",
    "lr": "optim.lr",
    "lr0": "optim.lr",
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "warmup_epochs": "optim.warmup_epochs",
    "opt": "optim.name",
    "optimizer": "optim.name",
    "layer_decay": "optim.layer_decay",
    "clip_grad": "optim.clip_norm",
    "patience": "train.patience",
    "early_stopping_patience": "train.patience",
    "freeze": "train.freeze_blocks",
    "class_weights": "objective.class_weights",
    "seed": "train.seed",
    "amp": "train.precision",
    "workers": "data.workers",
    "num_workers": "data.workers",
    "grad_accum_steps": "train.accumulate",
    "model_ema_decay": "train.ema_decay",
    "mixup": "mix.mixup",
    "cutmix": "mix.cutmix",
    "smoothing": "mix.smoothing",
    "label_smoothing": "mix.smoothing",
    "drop_path": "model.drop_path",
}
"""What other programs call a key of ours, with underscores: the only list of it."""
ELSEWHERE = {
    "project": "give --out FOLDER",
    "name": "give --out FOLDER",
    "output": "give --out FOLDER",
    "output_dir": "give --out FOLDER",
    "save_dir": "give --out FOLDER",
    "model": "name the model first, as `anyres train restv2_nano`",
    "arch": "name the model first, as `anyres train restv2_nano`",
    "pretrained": "give --weights auto, or name weights",
    "checkpoint": "give --weights FILE",
    "initial_checkpoint": "give --weights FILE",
    "finetune": "give --weights auto, or name weights",
    "resume": "the same command resumes an interrupted run",
    "exist_ok": "the same command resumes a run; for another one give another --out FOLDER",
    "data": "give --data FOLDER",
    "data_dir": "give --data FOLDER",
    "data_path": "give --data FOLDER",
    "device": "give --device cpu, cuda:1 or mps (in Python device=)",
    "num_classes": "the folders of images, or their labels, say how many classes there are: leave it out",
    "val": "the held-out images are scored at the end: leave it out",
}
"""Words of other programs that are no key of ours -> what to do instead."""
_PRECISIONS = {"true": "auto", "1": "auto", "yes": "auto", "false": "fp32", "0": "fp32", "no": "fp32"}
"""What ``amp`` means, beside the precisions themselves."""
REQUIRED = dataclasses.MISSING
"""The default of a key that has none."""
_FAR = 2.0**53
"""Beyond it a number has no bound."""
_CLOSE = 1e-12
_ANCHORS = (1, 0.5, 224, 0)
"""Of a number whose default is null: one of them is accepted."""
_WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Any: "any value",
}


class Setting(NamedTuple):
    """One field of a configuration."""

    name: str  # with the groups that hold it, as optim.lr
    kind: Any  # its type
    default: Any  # REQUIRED where it must be given
    meaning: str  # the field's comment
    owner: type  # the dataclass that holds it

    @property
    def field(self) -> str:
        """The name within its group."""
        return self.name.rpartition(".")[2]

    @property
    def allowed(self) -> str:
        """What a value may be, in words: choices, or a type with its range."""
        return allowed(self.kind, lambda whole: number_range(self.owner, self.field, whole=whole))


def from_habit(text: str) -> str:
    """``epochs=5`` as ``train.epochs=5``; any other KEY=VALUE as it is. Raises UserError for a word that is no key."""
    key, sign, value = text.partition("=")
    word = key.replace("-", "_").lower()
    if not sign or "." in key:
        return text
    if word == "amp":
        value = _PRECISIONS.get(value.lower(), value)
    if word == "batch" and value == "-1":  # Ultralytics' word for it
        value = "auto"
    if word in HABITS:
        return f"{HABITS[word]}={value}"
    if word in ELSEWHERE and not value.lstrip().startswith("{"):  # a group of ours in YAML
        raise UserError(f"{key}={value} is no key of a recipe: {ELSEWHERE[word]}")
    return text


def fields_of(owner: type) -> Iterator[Setting]:
    """The fields of a configuration, with the comment above, beside, or the string below each."""
    lines = inspect.getsource(owner).splitlines()
    tree = ast.parse(textwrap.dedent("\n".join(lines))).body[0]
    assert isinstance(tree, ast.ClassDef)
    kinds = get_type_hints(owner)
    by_name = {field.name: field for field in dataclasses.fields(owner)}
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        field = by_name.get(node.target.id)
        if field is not None:
            yield Setting(field.name, kinds[field.name], _default(field), _comment(lines, node, after), owner)


def all_settings(owner: type, prefix: str = "") -> Iterator[Setting]:
    """Every key below a configuration in the order of the fields, those of a list of groups as ``views.groups[].size``.

    A key that holds a group is left out, but for one that may be null or a list.
    """
    for setting in fields_of(owner):
        group, more = group_in(setting.kind)
        named = setting._replace(name=f"{prefix}{setting.name}")
        if group is None or group is not setting.kind:
            yield named
        if group is not None:
            yield from all_settings(group, f"{named.name}{more}.")


def group_in(kind: Any) -> tuple[type | None, str]:
    """The configuration within a type (None: it has none), and what follows its key: ``[]`` where it is a list."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind, ""
    for part in get_args(kind):
        if dataclasses.is_dataclass(part):
            return part, "[]" if get_origin(kind) is tuple else ""  # type: ignore[return-value]
    return None, ""


def allowed(kind: Any, bounds: Callable[[bool], str] = lambda _: "") -> str:
    """A type in words; ``bounds`` gives the range of a number, whole or not, or an empty string."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, UnionType):
        parts = list(dict.fromkeys(allowed(part, bounds) for part in get_args(kind)))
        return (", or " if any("," in part for part in parts) else " or ").join(parts)
    if get_origin(kind) is tuple:
        held = get_args(kind)
        return f"list of {allowed(held[0])}" if held[-1] is ... else f"{len(held)} of {allowed(held[0])}"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return "the keys below"
    if kind in (int, float) and (found := bounds(kind is int)):
        return f"{_WORDS[kind]} {found}"
    return _WORDS.get(kind, "map")


@cache
def number_range(owner: type, field: str, *, whole: bool) -> str:
    """The numbers that a field accepts, others at their defaults, as ``above 0 and at most 1``; empty: any."""

    def accepts(value: float) -> bool:
        given = {each.name: 96 for each in dataclasses.fields(owner) if _default(each) is REQUIRED}
        try:
            owner(**(given | {field: int(value) if whole else float(value)}))
        except (UserError, ValueError):
            return False
        return True

    own = next(_default(each) for each in dataclasses.fields(owner) if each.name == field)
    candidates = (own, *_ANCHORS) if isinstance(own, int | float) and not isinstance(own, bool) else _ANCHORS
    anchor = next((float(value) for value in candidates if accepts(float(value))), None)
    if anchor is None:
        return ""
    low, high = _bound(accepts, anchor, -_FAR, whole=whole), _bound(accepts, anchor, _FAR, whole=whole)
    if low and high and low[1] and high[1]:
        return f"from {low[0]:g} to {high[0]:g}"
    words = [f"of {low[0]:g} or more" if low[1] else f"above {low[0]:g}"] if low else []
    words += [f"at most {high[0]:g}" if high[1] else f"below {high[0]:g}"] if high else []
    return " and ".join(words)


def _bound(accepts: Callable[[float], bool], inside: float, far: float, *, whole: bool) -> tuple[float, bool] | None:
    """The bound between an accepted value and ``far``, and whether it is accepted itself; None: there is none."""
    if accepts(far):
        return None
    outside = far
    while abs(inside - outside) > (1 if whole else _CLOSE * max(1.0, abs(inside))):
        middle = (inside + outside) / 2 if not whole else float((int(inside) + int(outside)) // 2)
        if accepts(middle):
            inside = middle
        else:
            outside = middle
    bound = inside if whole else round(inside, 9)
    return bound, accepts(bound)


def as_yaml(value: Any) -> str:
    """A value as a recipe writes it, on one line."""
    if value is REQUIRED:
        return ""
    if isinstance(value, float) and value in (3 / 4, 4 / 3):
        return "3/4" if value < 1 else "4/3"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, str) and value.isdigit():  # a size, which may be written without quotes
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _comment(lines: list[str], node: ast.AnnAssign, after: ast.stmt | None) -> str:
    """What is said of a field, on one line without a full stop at the end."""
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    last = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset or 0 :].strip()
    if last.startswith("#"):
        above.append(last.lstrip("# "))
    if not above and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        above.append(str(after.value.value))
    return " ".join(" ".join(above).replace("``", "`").split()).rstrip(".")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else REQUIRED
