"""Whether a training starts from weights, which are known for its model, and which are the best of them."""

from __future__ import annotations

from anyres.config import UserError
from anyres.models import variant
from anyres.models.index import known_weights
from anyres.models.weights import PRETRAINED
from anyres.recipe import Recipe

AUTO = "auto"
"""What ``--weights`` says for the best that are known."""


def from_scratch(recipe: Recipe) -> str:
    """That no weights are loaded, which exist, and how to start from them."""
    name = str(recipe.model["name"])
    about = variant(name)
    known = [row.name for row in known_weights(about.name) if row.url]
    start = "no weights are loaded: training starts from scratch"
    if known:
        return f"{start} (known for {name}: {', '.join(known)}; --weights NAME, or auto for the best, starts from them)"
    if about.foreign:
        return f"{start} (--weights {PRETRAINED} starts from its library's)"
    return f"{start} (none are known for {name}; --weights takes a file, a URL, a hub id or a run)"


def best_weights(model: str) -> str:
    """``--weights auto``: of the weights that are known for a model and can be fetched, those of the highest published
    accuracy, or its library's. Raises UserError where there are none."""
    about = variant(model)
    if about.foreign:
        return PRETRAINED
    rows = [row for row in known_weights(about.name) if row.url]
    if not rows:
        raise UserError(f"--weights auto: none are known for {model} that can be fetched: leave it out, or name a file")
    return max(rows, key=lambda row: max(row.top1.values(), default=0.0)).name
