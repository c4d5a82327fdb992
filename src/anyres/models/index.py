"""The index of known weights, ``weights.yaml``: what was published of each model, where, and how well it did.

Reading it imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any

from anyres.config import UserError, nearest

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published set of weights, or one published result whose weights were not released (then without ``url``).

    ``model`` is its official name, ``name`` its own (``deit3_small.384_21k``), ``trained`` says how in words.
    ``top1`` is percent on ImageNet-1k by the size tested; ``knn`` and ``linear`` the same by a probe on frozen
    features. ``also`` is a second address of the file at ``url``, ``published`` where authors without direct downloads
    offer it; ``sha256`` a digest or its first digits. The transform of the test speaks timm's words.
    """

    model: str
    name: str
    trained: str
    img_size: int
    source: str
    crop_pct: float
    interpolation: str
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    top1: Mapping[int, float] = field(default_factory=dict)
    knn: float | None = None
    linear: float | None = None
    url: str | None = None
    also: str | None = None
    published: str | None = None
    sha256: str | None = None
    licence: str | None = None


def known_weights(model: str | None = None) -> tuple[Weights, ...]:
    """All rows of the index in its order, or those of one model by its official name; () if nothing was published."""
    rows = _read()
    return rows if model is None else tuple(row for row in rows if row.model == model)


def first_weights(model: str) -> str:
    """The name of the first known weights of a model, preferably of some that can be fetched. Raises UserError."""
    rows = known_weights(model)
    if not rows:
        raise UserError(f"no weights of {model} were published: give a file's path")
    return next((row for row in rows if row.url), rows[0]).name


@cache
def _read() -> tuple[Weights, ...]:
    import yaml

    text = files("anyres.models").joinpath("weights.yaml").read_bytes()
    rows = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return tuple(_row(values, f"weights.yaml, row {i}") for i, values in enumerate(rows, 1))


def _row(values: Mapping[str, Any], where: str) -> Weights:
    """A row with its types as written in Weights. Raises UserError for an unknown, missing or mistyped key."""
    known = {f.name: f for f in fields(Weights)}
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{nearest(str(key), known)}")
    for key, f in known.items():
        if key not in values and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}: {key!r} is missing")
    row = {key: _typed(value, str(known[key].type), f"{where}: {key}") for key, value in values.items()}
    if not row.keys() & {"url", "published"}:
        raise UserError(f"{where}: it needs an url, or published: where else, or 'not released'")
    return Weights(**row)


def _typed(value: Any, kind: str, where: str) -> Any:
    if kind.startswith("str") and isinstance(value, str):
        return value
    if kind == "int" and type(value) is int:
        return value
    if kind.startswith("float") and type(value) in (int, float):
        return float(value)
    if kind.startswith("tuple") and isinstance(value, list) and len(value) == 3:
        return tuple(_typed(v, "float", where) for v in value)
    if kind.startswith("Mapping") and isinstance(value, dict):
        return {_typed(size, "int", where): _typed(v, "float", where) for size, v in value.items()}
    raise UserError(f"{where}: {value!r} is no {kind}")
