"""Annotated pictures as a source of images: one split, with val held out of train where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from anyres.config import UserError
from anyres.data.annotations.annotated import AnnotatedSet, Kind, Rules
from anyres.data.annotations.forms import open_annotations
from anyres.data.annotations.tiles import tiles_of
from anyres.data.raw_dataset import Item, Parts
from anyres.data.sources import Source, Wanted, choose, open_source, open_test_set, scored_split
from anyres.flow import Objects, Record

KINDS: dict[Wanted, Kind] = {"maps": "maps", "boxes": "boxes"}
"""What is wanted of a set -> what is drawn on its pictures."""
TOLD = 20  # faults that are named in a source's notes


@dataclass(frozen=True)
class Drawn:
    """How annotated pictures are taken. ``rules``: what is done about faults, and whether pictures without an object
    are left out of those to train on. ``tile``: larger pictures are cut into parts of about this side in pixels."""

    rules: Rules = field(default_factory=Rules)
    tile: int | None = None

    def opened(self, data: str, kind: Kind) -> AnnotatedSet:
        """The set, with its negatives. Raises UserError."""
        found = open_annotations(data, kind, replace(self.rules, drop_empty=False))
        if self.tile is None:
            return found
        parts = {
            part: tuple(tile for record in records for tile in tiles_of(record, self.tile))
            for part, records in found.parts.items()
        }
        before, now = (sum(map(len, some.values())) for some in (found.parts, parts))
        note = f"data.tile={self.tile}: {before} pictures are cut into {now}"
        return replace(found, parts=parts, notes=(*found.notes, note))


def open_split(
    data: str, split: str, *, val_share: float = 0.2, wanted: Wanted = "classes", how: Drawn = Drawn()
) -> Source:
    """One split of labelled or annotated pictures, to train on. Raises UserError, also for too many faults."""
    kind = KINDS.get(wanted)
    if kind is None:
        return open_source(data, split, val_share=val_share, wanted=wanted)
    source = drawn_source(how.opened(data, kind).checked(how.rules), split, val_share=val_share)
    return without_empty(source) if how.rules.drop_empty and split in ("train", "trainval") else source


def without_empty(source: Source) -> Source:
    """The pictures that have an object, crowds not counted. Raises UserError where none has."""
    full = tuple(r for r in source.records if not isinstance(r.target, Objects) or not r.target.crowd.all())
    if not full:
        raise UserError(f"{source.name} has no object to learn in {source.split}: annotate some, or give another set")
    note = f"data.drop_empty: {len(source.records) - len(full)} pictures without an object are left out of training"
    return replace(source, records=full, notes=(*source.notes, note))


def open_scored(
    data: str,
    split: str | None,
    *,
    usual: str = "val",
    val_share: float = 0.2,
    wanted: Wanted = "classes",
    how: Drawn = Drawn(),
) -> Source:
    """Labelled or annotated pictures that are only scored: see ``open_test_set``."""
    kind = KINDS.get(wanted)
    if kind is None:
        return open_test_set(data, split, usual=usual, val_share=val_share, wanted=wanted)
    found = how.opened(data, kind)
    if found.parts.get("train") or not any(found.records):
        found.checked(how.rules)
    elif fault := found.faults.stop:
        raise UserError(f"{data} cannot be scored: {fault.where}: {fault.what}")
    counts = {part: len(records) for part, records in found.parts.items() if records}
    split, notes = scored_split(data, counts, split, usual)
    return drawn_source(replace(found, notes=(*found.notes, *notes)), split, val_share=val_share)


def drawn_source(found: AnnotatedSet, split: str, *, val_share: float = 0.2) -> Source:
    """One split (train, val, test, trainval), as ``open_source`` gives it for labels.

    Without a val split, ``val_share`` of train is held out by a hash of the pictures' names, of each class in turn: a
    picture counts for the rarest that it has. Without a test split, ``test`` is val. What was wrong with annotations is
    among the notes. Raises UserError for a split without a picture, and for two pictures of one name.
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
    told = (*found.notes, *_faults(found), *notes)
    return Source(found.name, found.classes, made, told, split, "drawn", found.mirrored)


def _faults(found: AnnotatedSet) -> Iterator[str]:
    """A line for each fault, up to ``TOLD``."""
    kept = found.faults.kept
    yield from (fault.line for fault in kept[:TOLD])
    if len(kept) > TOLD:
        yield f"... {len(kept)} faults in all: `anyres check` lists them"


def _classes(found: AnnotatedSet, record: Record) -> tuple[str, ...]:
    if not isinstance(record.target, Objects):
        return ()  # what a class map holds is not read for this
    return tuple(found.classes[index] for index in sorted(set(record.target.classes.tolist())))
