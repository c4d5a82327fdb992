"""Tar shards as WebDataset writes them: ``000123.jpg`` beside ``000123.cls`` (or ``.json``) in plain ``.tar`` files.

The members' offsets are read once, at the start; then a sample is a function of its index, as of any source, so
shuffling is over all shards, and resuming is exact. Nothing is unpacked, and no more than one image is in memory.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anyres.config import UserError, first_line
from anyres.data.raw_dataset import (
    ENDINGS,
    Found,
    Item,
    LabelParser,
    Parts,
    keys_of,
    number_order,
    readable_text,
    split_of,
)
from anyres.data.tar_index import members

_MOST_BYTES = 2**24  # of a member with labels, which is read at once


@dataclass(frozen=True)
class Slice:
    """Bytes within a file; each reading opens the file anew, so that processes share nothing."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes. Raises ValueError when the file ends before them."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.path.name} ends within it")
        return data


@dataclass
class _Sample:
    image: Slice | None = None
    name: str = ""
    labels: tuple[str, ...] | None = None
    labelled_by: str = ""
    more: int = 0  # images beside the first


def read_shards(paths: Sequence[Path]) -> Found:
    """All samples of ``paths``; a shard's split is in its name or its folder's (``val-0003.tar``, ``val/0003.tar``).

    A sample is what has one name up to the first dot: an image, and its label in ``.cls`` (a number or a name) or
    under ``label`` or ``cls`` in ``.json``, there also a list of labels (then in all of them: multi-label). Raises
    UserError for what is no plain tar and for labels that are none.
    """
    parts: Parts = {}
    reader = LabelParser()
    bare, unlabelled, more = 0, 0, 0
    first, loose = "", defaultdict(list)
    for key, path in zip(keys_of(paths), paths, strict=True):
        samples = _scan(path, reader)
        items = parts.setdefault(split_of(key), [])
        more += sum(sample.more for sample in samples.values())
        for sample in samples.values():
            if sample.image is None or sample.labels is None:
                bare, unlabelled = bare + (sample.image is None), unlabelled + (sample.image is not None)
                first = first or f"{key}/{sample.name}"
                if sample.image is not None:
                    loose[split_of(key)].append(Item(f"{key}/{sample.name}", (), sample.image))
            else:
                items.append(Item(f"{key}/{sample.name}", sample.labels, sample.image))
    if not any(parts.values()):
        line = f"{paths[0]} holds no image with a label: its members must be named as 0001.jpg and 0001.cls"
        return Found(dict(loose), unlabelled=line)
    notes = [
        f"{count} samples of the shards have no {what} (first: {first}): left out"
        for count, what in ((bare, "image"), (unlabelled, "label"))
        if count
    ]
    if more:
        notes.append(f"{more} images stand beside another of the same sample: the first of each is read")
    found = Found(parts, None, notes, bool(reader.several))
    return replace(found, order=number_order(found.items))


def _scan(path: Path, reader: LabelParser) -> dict[str, _Sample]:
    """The samples of one shard by their name without ending, in the order of the shard."""
    samples: dict[str, _Sample] = {}
    for member in members(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem:  # .DS_Store, ._0001.jpg
            continue
        sample = samples.setdefault(f"{folder}/{stem}", _Sample(name=member.name))
        ending, where = ending.lower(), Slice(path, member.offset, member.size)
        if f".{ending}" in ENDINGS:
            if sample.image is None:
                sample.image, sample.name = where, member.name
            else:
                sample.more += 1
        elif ending == "cls" or (ending == "json" and sample.labelled_by != "cls"):
            labels = _labels(f"{path.name}/{readable_text(member.name)}", where, ending, reader)
            if labels is not None:
                sample.labels, sample.labelled_by = labels, ending
    return samples


def _labels(where: str, member: Slice, ending: str, reader: LabelParser) -> tuple[str, ...] | None:
    """What stands in a ``.cls`` or ``.json`` member; None when the JSON says nothing of it."""
    if member.size > _MOST_BYTES:
        raise UserError(f"{where} has {member.size} bytes: a label has a few, and {ending} at most {_MOST_BYTES}")
    try:
        text = member.read().decode("utf-8-sig")
        if ending == "cls":
            return reader.read(text, where)
        value = json.loads(text)
    except OSError as error:
        raise UserError(f"{member.path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no UTF-8 {ending}: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object with a label")
    given = [value[key] for key in ("label", "cls") if key in value]
    return reader.read(given[0], where) if given else None
