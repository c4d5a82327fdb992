"""Tensors of the open inference protocol, version 2: JSON with numbers, or with bytes behind it. No web framework."""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from anyres.storage import parse_json

DTYPES: dict[str, np.dtype] = {"UINT8": np.dtype("u1"), "INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}
"""Data types with numbers that are used here."""
Datatype = Literal["UINT8", "INT64", "FP32", "BYTES"]


@dataclass(frozen=True)
class Asked:
    """One tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None  # None: it comes as bytes behind the JSON
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inference:
    """A request, as the protocol has it."""

    inputs: list[Asked]
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)


Tensors = dict[str, "Shaped[np.ndarray, '...'] | list[bytes]"]
"""By name: numbers, or for BYTES one item for each element."""


def parse(body: bytes, json_bytes: int | None) -> tuple[Inference, Tensors]:
    """A request and its tensors. ``json_bytes``: how much of the body is JSON, tensors behind it (None: all).

    Raises ValueError, in one line.
    """
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise ValueError(f"Inference-Header-Content-Length is {json_bytes}, and the body has {len(body)} bytes")
    head, rest = (body, b"") if json_bytes is None else (body[:json_bytes], memoryview(body)[json_bytes:])
    asked: Inference = parse_json(head, Inference)
    tensors: Tensors = {}
    for each in asked.inputs:
        if each.name in tensors:
            raise ValueError(f"input {each.name!r} comes twice")
        if any(side < 0 for side in each.shape) or math.prod(each.shape) > 2**31:
            raise ValueError(f"input {each.name!r} cannot have shape {each.shape}")
        if each.data is not None:
            tensors[each.name] = _of_json(each)
            continue
        size = each.parameters.get("binary_data_size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
            raise ValueError(f"input {each.name!r} has neither data nor as many bytes behind the JSON as it says")
        tensors[each.name] = _of_bytes(each, bytes(rest[:size]))
        rest = rest[size:]
    if len(rest):
        raise ValueError(f"{len(rest)} bytes behind the JSON belong to no input")
    return asked, tensors


def _of_json(asked: Asked) -> Any:
    if asked.datatype == "BYTES":
        return _counted(asked, [_base64(asked, item) for item in _flat(asked.data)])
    kind = _kind(asked)
    values = np.asarray(asked.data)
    if values.dtype.kind not in ("iuf" if kind.kind == "f" else "iu") and values.size:
        raise ValueError(f"input {asked.name!r}: its data are no {asked.datatype}")
    made = values.astype(kind)
    if kind.kind != "f" and not np.array_equal(made, values):
        raise ValueError(f"input {asked.name!r}: a number is beyond {asked.datatype}")
    return _shaped(asked, made)


def _of_bytes(asked: Asked, content: bytes) -> Any:
    if asked.datatype == "BYTES":  # each with its length before it
        items, place = [], 0
        while place < len(content):
            length = int.from_bytes(content[place : place + 4], "little")
            items.append(content[place + 4 : place + 4 + length])
            place += 4 + length
        if place != len(content):
            raise ValueError(f"input {asked.name!r}: an item is longer than its bytes")
        return _counted(asked, items)
    kind = _kind(asked)
    if len(content) % kind.itemsize:
        raise ValueError(f"input {asked.name!r}: {len(content)} bytes are no {asked.datatype}")
    return _shaped(asked, np.frombuffer(content, kind))


def _kind(asked: Asked) -> np.dtype:
    if asked.datatype not in DTYPES:
        raise ValueError(f"input {asked.name!r}: datatype {asked.datatype!r} is not taken here")
    return DTYPES[asked.datatype]


def _shaped(asked: Asked, values: Any) -> Any:
    if values.size != math.prod(asked.shape):
        raise ValueError(f"input {asked.name!r} has {values.size} values, and its shape {asked.shape} another number")
    return values.reshape(asked.shape)


def _counted(asked: Asked, items: list[bytes]) -> list[bytes]:
    if len(items) != math.prod(asked.shape):
        raise ValueError(f"input {asked.name!r} has {len(items)} items, and its shape {asked.shape} another number")
    return items


def _flat(data: Any) -> list[Any]:
    """The items of nested lists."""
    found, left = [], [data]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += reversed(item)
        else:
            found.append(item)
    return found


def _base64(asked: Asked, item: Any) -> bytes:
    try:
        return base64.b64decode(item, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"input {asked.name!r}: an item is no base64 of an encoded image") from None


def written(values: dict[str, Any], output: Shaped[np.ndarray, "b k"], binary: bool) -> tuple[bytes, int | None]:
    """The body of an answer with one output, and how much of it is JSON, if not all; ``values``: all else of it."""
    said: dict[str, Any] = {"name": "probabilities", "shape": list(output.shape), "datatype": "FP32"}
    if not binary:
        said["data"] = [round(float(value), 7) for value in output.ravel()]
        return json.dumps({**values, "outputs": [said]}).encode(), None
    content = output.astype("<f4").tobytes()
    said["parameters"] = {"binary_data_size": len(content)}
    head = json.dumps({**values, "outputs": [said]}).encode()
    return head + content, len(head)
