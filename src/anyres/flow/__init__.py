"""The nouns that travel between rooms: Size, Record, Objects, Geometry, Targets, Batch, Metric, Estimate, SizeResult.

A leaf but for the users' error it raises. What holds tensors or arrays is loaded when it is asked for: sizes and
results are read without torch and NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anyres.flow.record import Annotation, Geometry, Record, Stored, Target
from anyres.flow.result import DISTURBED, Cost, Estimate, Metric, SizeResult, is_disturbed
from anyres.flow.size import MOST_SIDE, MOST_SIZES, Size, parse_sizes

if TYPE_CHECKING:
    from anyres.flow.batch import Batch, Labels, TargetReader, Targets, seen_views
    from anyres.flow.dense import Instances, Maps, OwnMaps, OwnObjects, ViewObjects
    from anyres.flow.device import has_bf16, on_device, pick_device, send
    from anyres.flow.objects import IGNORED, MapFile, Objects, Polygons, Rle, Shape

_LATER = {
    **dict.fromkeys(("Batch", "Labels", "TargetReader", "Targets", "seen_views"), "anyres.flow.batch"),
    **dict.fromkeys(("Instances", "Maps", "OwnMaps", "OwnObjects", "ViewObjects"), "anyres.flow.dense"),
    **dict.fromkeys(("IGNORED", "MapFile", "Objects", "Polygons", "Rle", "Shape"), "anyres.flow.objects"),
    **dict.fromkeys(("has_bf16", "on_device", "pick_device", "send"), "anyres.flow.device"),
}

__all__ = [
    "DISTURBED",
    "IGNORED",
    "MOST_SIDE",
    "MOST_SIZES",
    "Annotation",
    "Batch",
    "Cost",
    "Estimate",
    "Geometry",
    "Instances",
    "Labels",
    "MapFile",
    "Maps",
    "Metric",
    "Objects",
    "OwnMaps",
    "OwnObjects",
    "Polygons",
    "Record",
    "Rle",
    "Shape",
    "Size",
    "SizeResult",
    "Stored",
    "Target",
    "TargetReader",
    "Targets",
    "ViewObjects",
    "has_bf16",
    "is_disturbed",
    "on_device",
    "parse_sizes",
    "pick_device",
    "seen_views",
    "send",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'anyres.flow' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
