"""What the classes of a model are called, and a set of images labelled in the model's order of classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyres.config import UserError, nearest, printable
from anyres.data.raw_dataset import one_form, shorten
from anyres.data.sources import Source
from anyres.flow import Target
from anyres.storage import read_bytes

Names = tuple[tuple[str, ...], ...]
"""``names[i]``: what class i may be called, the last one for people; () where nobody said."""


def read_names(path: Path) -> Names:
    """The class names in a file, in the order of the weights. Raises UserError.

    CSV or plain text: a line for each class, its columns being names of that class, such as ``n01440764,tench``; where
    the first column of every line is a number, that is the class's index. JSON: a list of names, or of lists of names;
    or an object from index to name (or list), or from name to index.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
        listed = _from_json(json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (ValueError, csv.Error, RecursionError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise UserError(f"{path} is no list of class names: {reason}") from None
    if not listed:
        raise UserError(f"{path} is no list of class names: it is empty")
    return listed


def _from_lines(text: str) -> Names:
    rows = [[cell.strip() for cell in row if cell.strip()] for row in csv.reader(text.splitlines())]
    rows = [row for row in rows if row]
    if all(len(row) > 1 and row[0].isdecimal() for row in rows):
        return _in_order({row[0]: row[1:] for row in rows}, len(rows))
    return tuple(map(tuple, rows))


def _from_json(content: Any) -> Names:
    if isinstance(content, list):
        return tuple(_names_of(entry) for entry in content)
    if not isinstance(content, dict):
        raise ValueError("a list of names is expected, or an object")
    if content and all(type(value) is int for value in content.values()):
        return _in_order({index: [name] for name, index in content.items()}, len(content))
    return _in_order({index: _names_of(entry) for index, entry in content.items()}, len(content))


def _names_of(entry: Any) -> tuple[str, ...]:
    names = entry if isinstance(entry, list) else [entry]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{entry!r} is no name")
    return tuple(names)


def _in_order(by_index: Mapping[str | int, Sequence[str]], count: int) -> Names:
    """Names under their indices, which must be 0, 1, ... without a gap."""
    found = {int(index): tuple(names) for index, names in by_index.items()}
    if sorted(found) != list(range(count)):
        raise ValueError(f"its indices are not 0 to {count - 1}, each once")
    return tuple(found[i] for i in range(count))


def relabel(source: Source, names: Names) -> Source:
    """``source`` with its labels counted as a model counts its ``len(names)`` classes. Raises UserError.

    By name where the names are known, whichever of them have images; else the order of the classes of ``source`` is
    the model's, as that of sorted WordNet ids is ImageNet's, if there are equally many.
    """
    if not all(names):
        if len(source.classes) == len(names):
            return source
        raise UserError(
            f"{source.name} has {len(source.classes)} classes and the weights {len(names)}: give --classes a file with "
            "the names of the weights' classes, one a line in their order, or imagenet"
        )
    indices: dict[str, set[int]] = {}
    for i, called in enumerate(names):
        for name in called:
            indices.setdefault(one_form(name), set()).add(i)
    for name in source.classes:
        if len(indices.get(one_form(name), ())) != 1:
            wrong = "stands for several" if one_form(name) in indices else "is not among the"
            hint = nearest(name, indices, 1)
            raise UserError(f"{source.name}: {shorten(name)} {wrong} classes of the model{hint}")
    number = [next(iter(indices[one_form(name)])) for name in source.classes]
    if len(set(number)) < len(number):
        raise UserError(f"{source.name} has two classes that are one of the model's")
    notes = source.notes
    if len(number) < len(names):
        notes = (*notes, f"images of {len(number)} of the {len(names)} classes; all {len(names)} can be predicted")

    def renumbered(target: Target) -> Target:
        if isinstance(target, tuple):
            return tuple(sorted(number[index] for index in target))
        return number[target] if isinstance(target, int) and target >= 0 else target

    records = tuple(replace(r, target=renumbered(r.target)) for r in source.records)
    return replace(source, classes=tuple(called[-1] for called in names), records=records, notes=notes)
