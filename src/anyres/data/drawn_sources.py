"""Annotated pictures as a source of images: one split, with val held out of train where there is none."""

from __future__ import annotations

from anyres.config import UserError
from anyres.data.annotations.annotated import AnnotatedSet
from anyres.data.raw_dataset import Item, Parts
from anyres.data.sources import Source, choose
from anyres.flow import Objects, Record


def drawn_source(found: AnnotatedSet, split: str, *, val_share: float = 0.2) -> Source:
    """One split (train, val, test, trainval), as ``open_source`` gives it for labels.

    Without a val split, ``val_share`` of train is held out by a hash of the pictures' names, of each class in turn: a
    picture counts for the rarest that it has. Without a test split, ``test`` is val. Raises UserError for a split
    without a picture, and for two pictures of one name.
    """
    records: dict[str, Record] = {}
    parts: Parts = {}
    for part, some in found.parts.items():
        for record in some:
            if records.setdefault(record.name, record) is not record:
                raise UserError(f"{found.name} has two pictures called {record.name}: rename one")
            parts.setdefault(part, []).append(Item(record.name, _classes(found, record), record.source))
    chosen, notes = choose(found.name, parts, split, val_share)
    made = tuple(records[item.key] for item in chosen)
    return Source(found.name, found.classes, made, (*found.notes, *notes), split, "drawn")


def _classes(found: AnnotatedSet, record: Record) -> tuple[str, ...]:
    if not isinstance(record.target, Objects):
        return ()  # what a class map holds is not read for this
    return tuple(found.classes[index] for index in sorted(set(record.target.classes.tolist())))
