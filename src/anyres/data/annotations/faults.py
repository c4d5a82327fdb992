"""What is wrong with annotations: one line each, named and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from anyres.config import printable

CUT, LEFT_OUT, NO_MASK = "cut to the picture", "left out", "mask left out, box kept"
NO_PICTURE, TURNED, KEPT, STOP = "picture left out", "turned as the picture is", "kept", "stop"
NOTES = (CUT, TURNED, KEPT)
"""What is done without losing anything."""
MOST_KEPT = 1000
"""Faults of one kind that are kept with their place; the others are counted."""


@dataclass(frozen=True)
class Fault:
    """Something wrong: ``kind`` for counting, ``where`` (file, annotation, picture), ``what``, and what was ``done``.

    ``done``: cut to the picture, left out, mask left out, picture left out, turned, kept, or stop (nothing is trained
    on such a set). ``count``: how many annotations it concerns, as those of one unknown class.
    """

    kind: str
    where: str
    what: str
    done: str
    count: int = 1

    @property
    def line(self) -> str:
        """All of it, in one line."""
        many = f" ({self.count} annotations)" if self.count > 1 else ""
        return printable(f"{self.where}: {self.what}{many}: {self.done}", 600)


@dataclass
class Faults:
    """The faults of one set, in the order in which they are met; of each kind the first thousand with their place."""

    kept: list[Fault] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # of (kind, done)
    _places: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, where: str, what: str, done: str, count: int = 1) -> None:
        """Count one more, and keep it."""
        self.counts[kind, done] += count
        self._places[kind] += 1
        if self._places[kind] <= MOST_KEPT or done == STOP:
            self.kept.append(Fault(kind, where, what, done, count))

    def extend(self, faults: Iterable[Fault]) -> None:
        """Add each."""
        for fault in faults:
            self.add(fault.kind, fault.where, fault.what, fault.done, fault.count)

    def done(self, *ways: str) -> int:
        """How many had one of these things done about them."""
        return sum(count for (_, done), count in self.counts.items() if done in ways)

    @property
    def stop(self) -> Fault | None:
        """The first for which nothing may be trained on the set."""
        return next((fault for fault in self.kept if fault.done == STOP), None)


def tolerated(n: int, share: float) -> int:
    """How many of ``n`` may be left out: ``share`` of them, and ten in any case, unless the share is 0."""
    return max(10, int(n * share)) if share else 0


def too_many(faults: Faults, annotations: int, pictures: int, max_faulty: float) -> str | None:
    """The line that stops a run for what was left out; None: it is little enough. A box whose outline alone is left
    out is not.

    ``annotations``: of the pictures that are there; ``pictures``: of the set; both as the files have them.
    """
    counted: Sequence[tuple[str, int, int]] = (
        ("annotations", faults.done(LEFT_OUT), annotations),
        ("pictures", faults.done(NO_PICTURE), pictures),
    )
    for what, lost, n in counted:
        if lost > tolerated(n, max_faulty):
            way = NO_PICTURE if what == "pictures" else LEFT_OUT
            first = next(fault for fault in faults.kept if fault.done == way)
            return (
                f"{lost} of {n} {what} are faulty, more than {100 * max_faulty:g} %, as {first.where}: {first.what}: "
                "mend or remove them, or allow more (max_faulty)"
            )
    return None
