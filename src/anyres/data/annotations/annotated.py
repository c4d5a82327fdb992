"""A set of annotated pictures, checked: what a task trains on, and what was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from anyres.config import UserError
from anyres.data.annotations.faults import NO_PICTURE, Faults, too_many
from anyres.flow import Record

Kind = Literal["boxes", "maps"]
"""What is drawn: boxes with or without outlines (``flow.Objects``), or class maps (``flow.MapFile``)."""


@dataclass(frozen=True)
class Rules:
    """What is done about faults.

    ``needs_masks``: an object without an outline is left out. ``drop_empty``: pictures without objects are left out,
    where else they are kept to learn from as negatives. ``max_faulty``: share of the annotations, and of the pictures,
    that may be left out; ten always may, unless it is 0.
    """

    needs_masks: bool = False
    drop_empty: bool = False
    max_faulty: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_faulty <= 1:
            raise UserError(f"max_faulty {self.max_faulty:g} is a share: 0 to 1")


@dataclass(frozen=True)
class AnnotatedSet:
    """The pictures of each split with what is drawn on them.

    ``parts``: split (train, val, test) -> records, whose ``target`` is ``flow.Objects`` (``kind`` boxes) or
    ``flow.MapFile`` (maps); a class index counts in ``classes``, which keep the file's order. ``annotations`` and
    ``pictures``: how many the files have, before anything was left out. ``empty``: pictures without an object.
    ``mirrored``: the class that each becomes when the picture is mirrored left to right; (): none changes.
    """

    name: str
    form: str
    kind: Kind
    classes: tuple[str, ...]
    parts: dict[str, tuple[Record, ...]]
    faults: Faults
    annotations: int
    pictures: int
    empty: int = 0
    notes: tuple[str, ...] = ()
    mirrored: tuple[int, ...] = ()

    @property
    def records(self) -> Iterator[Record]:
        """Those of every split."""
        return (record for records in self.parts.values() for record in records)

    def stop(self, rules: Rules) -> str | None:
        """The line that says why nothing can be trained on the set; None: it can be."""
        if fault := self.faults.stop:
            return f"{fault.where}: {fault.what}"
        if line := too_many(self.faults, self.annotations, self.pictures, rules.max_faulty):
            return line
        if not self.parts.get("train"):
            others = ", ".join(split for split, records in self.parts.items() if records)
            first = next((fault for fault in self.faults.kept if fault.done == NO_PICTURE), None)
            why = f" (only {others})" if others else f", as {first.where}: {first.what}" if first else ""
            return f"no train picture with usable annotations is left of {self.pictures}{why}"
        return None

    def checked(self, rules: Rules) -> AnnotatedSet:
        """The set itself. Raises UserError where nothing can be trained on it."""
        if line := self.stop(rules):
            raise UserError(f"{self.name} cannot be trained on: {line}")
        return self
