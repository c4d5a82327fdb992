"""What a model said of many files, as a program reads it: JSON, or CSV with one row for each image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyres.data.decode import Unreadable
from anyres.storage import write_rows
from anyres.tasks import Answer


@dataclass(frozen=True)
class FileAnswer:
    """One image file with its answer, or with the reason why it has none."""

    path: Path
    said: Answer | Unreadable

    @property
    def error(self) -> str:
        """Why it cannot be read; empty where it can."""
        return self.said.reason if isinstance(self.said, Unreadable) else ""

    @property
    def values(self) -> dict[str, Any]:
        """Plain values for JSON: ``image``, and what the task answers, or ``error``."""
        if isinstance(self.said, Unreadable):
            return {"image": str(self.path), "error": self.said.reason}
        return {"image": str(self.path), **self.said.values}


def write_answers_csv(path: Path, answers: Sequence[FileAnswer]) -> None:
    """Write ``image``, the answer's values and ``error`` as CSV, one row for each image, whole or not at all.

    A list, such as the likeliest classes, takes columns with a number: ``name_1``, ``probability_1``, ``name_2``, ...
    """
    rows = [{} if answer.error else dict(_flat(answer.said.values)) for answer in answers]  # type: ignore[union-attr]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = (
        (str(answer.path), *(row.get(column, "") for column in columns), answer.error)
        for answer, row in zip(answers, rows, strict=True)
    )
    write_rows(path, [("image", *columns, "error"), *cells])


def _flat(values: Mapping[str, Any], ending: str = "") -> Iterator[tuple[str, Any]]:
    """Columns and cells of plain values, those of a list by their place from 1 on."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, ending)
        elif isinstance(value, list | tuple):
            for place, each in enumerate(value, 1):
                number = f"{ending}_{place}"
                yield from _flat(each if isinstance(each, Mapping) else {key: each}, number)
        else:
            yield f"{key}{ending}", value
