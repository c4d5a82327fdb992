"""The file of answers: the rows of all parts as CSV, JSON lines or parquet, in the order of the list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anyres.config import UserError, printable
from anyres.data.answer_table import COLUMNS, check_parquet, write_answer_parquet
from anyres.runs.bulk.job import Job
from anyres.runs.bulk.worker import AnswerRow
from anyres.runs.drift import DriftCounter
from anyres.runs.opened import TrainedModel
from anyres.storage import atomic_write, write_rows

Kind = Literal["one", "several", "other"]
"""Of answers: one class, any number of labels, or what is no row of a table."""
BETWEEN = "|"
"""Stands between the labels of a CSV cell, as in manifests."""


def kind_of(trained: TrainedModel) -> Kind:
    """What a model's answers are."""
    kinds: dict[str, Kind] = {"softmax": "one", "sigmoid": "several"}
    return kinds.get(trained.task.activation, "other")


def check_out(out: Path, kind: Kind | None = None) -> None:
    """Raises UserError where answers of this ``kind`` (None: any) cannot be written to ``out``, before any work."""
    if out.suffix.lower() not in WRITERS:
        raise UserError(f"--out {printable(str(out))} must end with {', '.join(WRITERS)}: the ending says the form")
    if out.is_dir():
        raise UserError(f"--out {printable(str(out))} is a folder: name a file")
    if out.suffix.lower() == ".parquet":
        check_parquet(out)
    if kind == "other" and out.suffix.lower() != ".jsonl":
        raise UserError(f"--out {out}: answers with a place in the image are no row of a table: use .jsonl")


def join(job: Job, kind: Kind, drift: DriftCounter) -> int:
    """Write the answers of all parts to ``job.out``, whole or not at all; how many images could not be read. ``drift``
    counts those that could."""
    broken = 0

    def parts() -> Iterator[list[AnswerRow]]:
        nonlocal broken
        for rows in job.parts():
            for row in rows:
                if row["error"]:
                    broken += 1
                else:
                    drift.add(row["size"], row["answer"])
            yield rows

    WRITERS[job.out.suffix.lower()](job.out, parts(), kind)
    return broken


def columns_of(row: AnswerRow, kind: Kind) -> dict[str, Any]:
    """One image's cells; None where there is nothing. Of several labels, class and probability are lists."""
    answer: Mapping[str, Any] = row["answer"]
    found = answer.get("labels" if kind == "several" else "classes", [])
    names, shares = [each["name"] for each in found], [each["probability"] for each in found]
    said: tuple[Any, Any] = (names, shares) if kind == "several" else (names[0], shares[0]) if names else (None, None)
    if row["error"]:
        said = None, None
    values = (printable(row["image"]), *said, row["size"] or None, row["error"] or None)
    return dict(zip(COLUMNS, values, strict=True))


def _as_csv(path: Path, parts: Iterable[list[AnswerRow]], kind: Kind) -> None:
    rows = (tuple(map(_cell, columns_of(row, kind).values())) for rows in parts for row in rows)
    write_rows(path, _after(COLUMNS, rows))


def _after(first: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    yield first
    yield from rows


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return BETWEEN.join(map(_cell, value))
    if isinstance(value, float):
        return str(np.float32(value))  # the shortest that gives the same again
    return "" if value is None else str(value)


def _as_json_lines(path: Path, parts: Iterable[list[AnswerRow]], kind: Kind) -> None:
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        for rows in parts:
            for row in rows:
                file.write(json.dumps(_line(row, kind)) + "\n")


def _line(row: AnswerRow, kind: Kind) -> dict[str, Any]:
    if kind == "other":
        return {"image": printable(row["image"]), **row["answer"], "size": row["size"], "error": row["error"]}
    return {**columns_of(row, kind), **row["answer"]}


def _as_parquet(path: Path, parts: Iterable[list[AnswerRow]], kind: Kind) -> None:
    tables = ([columns_of(row, kind) for row in rows] for rows in parts)
    write_answer_parquet(path, tables, kind == "several")


WRITERS: dict[str, Callable[[Path, Iterable[list[AnswerRow]], Kind], None]] = {
    ".csv": _as_csv,
    ".jsonl": _as_json_lines,
    ".parquet": _as_parquet,
}
"""By the ending of the file."""
