"""A backbone's parameters within a larger model: their names in files, and their layers for layer-wise rates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_START = re.compile(r"(?<!\[)\^")


def groups_under(groups: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A backbone's ``group_matcher`` for its parameters with ``prefix`` before their names.

    What no expression fits, such as heads, timm puts into the last layer.
    """

    def under(pattern: str) -> str:
        return f"^{re.escape(prefix)}(?:{_START.sub('', pattern)})"

    found: dict[str, Any] = {}
    for name, entry in groups.items():
        several = isinstance(entry, list | tuple)
        found[name] = [(under(pattern), suffix) for pattern, suffix in entry] if several else under(entry)
    return found


def own_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` by the names of ``own``: with ``backbone.`` in front again, where that makes it one of them."""
    return {f"backbone.{key}" if f"backbone.{key}" in own else key: value for key, value in state.items()}
