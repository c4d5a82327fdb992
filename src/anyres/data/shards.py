"""Tar shards as WebDataset writes them: ``000123.jpg`` beside ``000123.cls`` (or ``.json``) in plain ``.tar`` files.

The members' offsets are read once, at the start; then a sample is a function of its index, as of any source, so
shuffling is over all shards, and resuming is exact. Nothing is unpacked, and no more than one image is in memory.
"""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anyres.config import UserError
from anyres.data.raw_dataset import ENDINGS, Found, Item, LabelParser, Parts, keys_of, number_order, split_of


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


def read_shards(paths: Sequence[Path]) -> Found:
    """All samples of ``paths``; a shard's split is in its name or its folder's (``val-0003.tar``, ``val/0003.tar``).

    A sample is what has one name up to the first dot: an image, and its label in ``.cls`` (a number or a name) or
    under ``label`` or ``cls`` in ``.json``, there also a list of labels (then in all of them: multi-label). Raises
    UserError for what is no plain tar and for labels that are none.
    """
    parts: Parts = {}
    reader = LabelParser()
    bare, unlabelled = 0, 0
    first, loose = "", defaultdict(list)
    for key, path in zip(keys_of(paths), paths, strict=True):
        samples = _scan(path, reader)
        items = parts.setdefault(split_of(key), [])
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
    found = Found(parts, None, notes, bool(reader.several))
    return replace(found, order=number_order(found.items))


def _scan(path: Path, reader: LabelParser) -> dict[str, _Sample]:
    """The samples of one shard by their name without ending, in the order of the shard."""
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if not stem:  # .DS_Store, ._0001.jpg
                    continue
                sample = samples.setdefault(f"{folder}/{stem}", _Sample(name=member.name))
                ending = ending.lower()
                if f".{ending}" in ENDINGS and sample.image is None:
                    sample.image, sample.name = Slice(path, member.offset_data, member.size), member.name
                elif ending == "cls" or (ending == "json" and sample.labelled_by != "cls"):
                    file = tar.extractfile(member)
                    assert file is not None
                    labels = _labels(f"{path.name}/{member.name}", file.read(), ending, reader)
                    if labels is not None:
                        sample.labels, sample.labelled_by = labels, ending
    except tarfile.TarError as error:
        raise UserError(f"{path} is no plain tar ({error}): a compressed one must be unpacked to .tar first") from None
    return samples


def _labels(where: str, data: bytes, ending: str, reader: LabelParser) -> tuple[str, ...] | None:
    """What stands in a ``.cls`` or ``.json`` member; None when the JSON says nothing of it."""
    try:
        text = data.decode("utf-8-sig")
        if ending == "cls":
            return reader.read(text, where)
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is no UTF-8 {ending}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object with a label")
    given = [value[key] for key in ("label", "cls") if key in value]
    return reader.read(given[0], where) if given else None
