"""Manifests: a ``.csv`` table or a ``.jsonl`` file of path, label or labels, and, if wanted, split."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from anyres.config import UserError
from anyres.data.raw_dataset import SPLIT_OF, Found, Item, LabelParser, Parts, number_order

BETWEEN = "|"
"""Stands between the names in a cell of a table's column ``labels``."""
Cells = Mapping[str, str | None]  # of a row, by the columns' names


class Row(NamedTuple):
    """One line of a manifest."""

    line: int
    path: str
    labels: tuple[str, ...]
    split: str


def read_csv(table: Path) -> Found:
    """A ``.csv`` with the columns path,label[,split]; paths count from the table's folder.

    Multi-label: a column ``labels`` instead, with ``|`` between names and nothing for none; or, without either, a
    column of 0 and 1 for each class.
    """
    names, first = _csv_start(table)
    classes = [name for name in names if name not in ("path", "label", "labels", "split", "")]
    if "label" in names:
        found = _csv_found(table, _one)
        joined = next((label for label in number_order(found.items) if BETWEEN in label), None)
        hint = f"{table.name} has classes such as {joined!r}: several labels go in a column 'labels'"
        return replace(found, notes=[*found.notes, hint]) if joined else found
    if "labels" in names:
        return replace(_csv_found(table, _several), several=True)
    if classes and all(_cell(first, name) in ("0", "1") for name in classes):
        return replace(_csv_found(table, partial(_ticked, classes)), order=classes, several=True)
    return replace(_csv_found(table, lambda *_: ()), unlabelled=_first_line(table, "label"))


def _csv_start(table: Path) -> tuple[list[str], Cells]:
    """The names of the columns, and the first row's cells."""
    rows = _csv_rows(table)
    names = next(rows)[1]
    return list(names), next(rows, (0, {}))[1]


def _csv_rows(table: Path) -> Iterator[tuple[int, Cells]]:
    """The line numbers and cells of a table: of its first line, whose cells are the names of the columns, then the rows
    by these."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [str(name).strip() for name in reader.fieldnames or []]
            if "path" not in names:
                raise UserError(_first_line(table, "path"))
            reader.fieldnames = names
            yield 1, dict.fromkeys(names)
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no UTF-8 table with commas: {error}") from error


def _first_line(table: Path, missing: str) -> str:
    return f"{table}:1: no column {missing!r}: the first line must be path,label[,split]"


def _csv_found(table: Path, read: Callable[[str, Cells], tuple[str, ...]]) -> Found:
    """The images of a table's rows, whose labels ``read`` takes from the cells."""
    rows = islice(_csv_rows(table), 1, None)
    return _collect(table, (_row(where := f"{table}:{line}", line, row, read(where, row)) for line, row in rows))


def _cell(row: Cells, name: str) -> str:
    return (row.get(name) or "").strip()


def _one(where: str, row: Cells) -> tuple[str, ...]:
    if not (label := _cell(row, "label")):
        raise UserError(f"{where}: the column 'label' is empty")
    return (label,)


def _several(_where: str, row: Cells) -> tuple[str, ...]:
    names = (name.strip() for name in _cell(row, "labels").split(BETWEEN))
    return tuple(dict.fromkeys(name for name in names if name))


def _ticked(classes: Sequence[str], where: str, row: Cells) -> tuple[str, ...]:
    ticks = {name: _cell(row, name) for name in classes}
    if wrong := next((name for name, tick in ticks.items() if tick not in ("0", "1")), None):
        raise UserError(f"{where}: the column {wrong!r} holds {ticks[wrong]!r}: of a class it must be 0 or 1")
    return tuple(name for name, tick in ticks.items() if tick == "1")


def read_jsonl(table: Path) -> Found:
    """One JSON object a line with path, label (a name or a whole number; or a list of them, then on every line) and, if
    wanted, split. ``labels`` may stand for ``label``."""
    reader = LabelParser()
    found = _collect(table, _jsonl_rows(table, reader))
    order = number_order(found.items)
    return replace(found, order=order, several=bool(reader.several), unlabelled=reader.unlabelled)


def _jsonl_rows(table: Path, reader: LabelParser) -> Iterator[Row]:
    number = 0
    try:
        with table.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _jsonl_row(f"{table}:{number}", number, json.loads(line), reader)
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is no UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{table}:{number}: no JSON object: {error}") from None
    if number == 0:
        raise UserError(f'{table} is empty: give one object a line, as {{"path": "cat/1.jpg", "label": "cat"}}')


def _jsonl_row(where: str, line: int, row: object, reader: LabelParser) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: no JSON object with path and label but {json.dumps(row)[:40]}")
    needed = "each line must have path and label, and may have split"
    if "path" not in row:
        raise UserError(f"{where}: no 'path': {needed}")
    given = [row[key] for key in ("label", "labels") if key in row]
    labels = reader.read(given[0], where) if given else reader.miss(f"{where}: no 'label': {needed}")
    for key in ("path", "split"):
        if key in row and not isinstance(row[key], str):
            raise UserError(f"{where}: the {key} {row[key]!r} is no text")
    return _row(where, line, row, labels)


def _row(where: str, line: int, values: Mapping[str, str | None], labels: tuple[str, ...]) -> Row:
    """A line's path and split, without blanks around them. Raises UserError where one is empty."""
    cells = {column: (values.get(column) or "").strip() for column in ("path", "split")}
    for column, cell in cells.items():
        if not cell and (column == "path" or column in values):
            raise UserError(f"{where}: the column {column!r} is empty")
    return Row(line, cells["path"], labels, cells["split"] or "train")


def _collect(table: Path, rows: Iterable[Row]) -> Found:
    parts: Parts = defaultdict(list)
    seen: dict[Path, tuple[int, tuple[str, ...], str]] = {}
    repeated = 0
    for row in rows:
        item, part = _item(table, row)
        assert isinstance(item.source, Path)
        before, labels, part_before = seen.setdefault(item.source, (row.line, item.labels, part))
        if (labels, part_before) != (item.labels, part):
            told = ", ".join(labels) or "nothing"
            raise UserError(f"{table}:{row.line}: {item.key} stands on line {before} as {told} ({part_before})")
        if before == row.line:
            parts[part].append(item)
        else:
            repeated += 1
    notes = [f"{repeated} repeated lines of {table.name}: left out"] if repeated else []
    return Found(dict(parts), None, notes)


def _item(table: Path, row: Row) -> tuple[Item, str]:
    part = SPLIT_OF.get(row.split.lower())
    if part is None:
        raise UserError(f"{table}:{row.line}: unknown split {row.split!r} (known: train, val, test)")
    path = table.parent / row.path
    if not path.is_file():
        raise UserError(f"{table}:{row.line}: no file {path}; paths count from the table's folder")
    return Item(Path(row.path).as_posix(), row.labels, path), part
