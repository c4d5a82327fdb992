"""Tar shards as WebDataset writes them: ``000123.jpg`` beside ``000123.cls`` (or ``.json``) in plain ``.tar`` files.

The members' offsets are read once, at the start; then a sample is a function of its index, as of any source, so
shuffling is over all shards, and resuming is exact. Nothing is unpacked, and no more than one image is in memory.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anyres.config import UserError
from anyres.data.parts import ENDINGS, Found, Item, Parts, keys_of, label_text, number_order, split_of


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
    label: str | None = None
    labelled_by: str = ""


def read_shards(paths: Sequence[Path]) -> Found:
    """All samples of ``paths``; a shard's split is in its name or its folder's (``val-0003.tar``, ``val/0003.tar``).

    A sample is what has one name up to the first dot: an image, and its label in ``.cls`` (a number or a name) or
    under ``label`` or ``cls`` in ``.json``. Raises UserError for what is no plain tar and for labels that are none.
    """
    parts: Parts = {}
    bare, unlabelled = 0, 0
    first = ""
    for key, path in zip(keys_of(paths), paths, strict=True):
        samples = _scan(path)
        items = parts.setdefault(split_of(key), [])
        for sample in samples.values():
            if sample.image is None or sample.label is None:
                bare, unlabelled = bare + (sample.image is None), unlabelled + (sample.image is not None)
                first = first or f"{key}/{sample.name}"
            else:
                items.append(Item(f"{key}/{sample.name}", sample.label, sample.image))
    if not any(parts.values()):
        raise UserError(f"{paths[0]} holds no image with a label: its members must be named as 0001.jpg and 0001.cls")
    notes = [
        f"{count} samples of the shards have no {what} (first: {first}): left out"
        for count, what in ((bare, "image"), (unlabelled, "label"))
        if count
    ]
    return Found(parts, number_order(item.label for items in parts.values() for item in items), notes)


def _scan(path: Path) -> dict[str, _Sample]:
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
                    label = _label(f"{path.name}/{member.name}", file.read(), ending)
                    if label is not None:
                        sample.label, sample.labelled_by = label, ending
    except tarfile.TarError as error:
        raise UserError(f"{path} is no plain tar ({error}): a compressed one must be unpacked to .tar first") from None
    return samples


def _label(where: str, data: bytes, ending: str) -> str | None:
    """The label in a ``.cls`` or ``.json`` member; None when the JSON says nothing of it."""
    try:
        text = data.decode("utf-8-sig")
        if ending == "cls":
            return label_text(text, where)
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is no UTF-8 {ending}: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object with a label")
    given = [value[key] for key in ("label", "cls") if key in value]
    return label_text(given[0], where) if given else None
