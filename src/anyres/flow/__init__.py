"""The nouns that travel between rooms: Size, Record, Geometry, Targets, Batch, Metric, Estimate, SizeResult.

A leaf but for the users' error it raises. What holds tensors is loaded when it is asked for: sizes and results are
read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anyres.flow.record import Geometry, Record, Stored
from anyres.flow.result import DISTURBED, Cost, Estimate, Metric, SizeResult, is_disturbed
from anyres.flow.size import MOST_SIDE, MOST_SIZES, Size, parse_sizes

if TYPE_CHECKING:
    from anyres.flow.batch import Batch, Labels, TargetReader, Targets, seen_views
    from anyres.flow.device import has_bf16, on_device, pick_device

_WITH_TORCH = {
    **dict.fromkeys(("Batch", "Labels", "TargetReader", "Targets", "seen_views"), "anyres.flow.batch"),
    **dict.fromkeys(("has_bf16", "on_device", "pick_device"), "anyres.flow.device"),
}

__all__ = [
    "DISTURBED",
    "MOST_SIDE",
    "MOST_SIZES",
    "Batch",
    "Cost",
    "Estimate",
    "Geometry",
    "Labels",
    "Metric",
    "Record",
    "Size",
    "SizeResult",
    "Stored",
    "TargetReader",
    "Targets",
    "has_bf16",
    "is_disturbed",
    "on_device",
    "parse_sizes",
    "pick_device",
    "seen_views",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'anyres.flow' has no attribute {name!r}")
    return getattr(import_module(_WITH_TORCH[name]), name)
