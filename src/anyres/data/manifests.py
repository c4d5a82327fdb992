"""Manifests: a ``.csv`` table or a ``.jsonl`` file of path, label and, if wanted, split."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from anyres.config import UserError
from anyres.data.parts import SPLIT_OF, Found, Item, Parts, label_text, number_order

Row = tuple[int, Mapping[str, str | None]]  # line, values
_COLUMNS = ("path", "label", "split")


def read_csv(table: Path) -> Found:
    """A ``.csv`` with the columns path,label[,split]; paths count from the table's folder."""
    return _collect(table, _csv_rows(table))


def read_jsonl(table: Path) -> Found:
    """One JSON object a line with path, label (a name or a whole number) and, if wanted, split."""
    found = _collect(table, _jsonl_rows(table))
    return Found(found.parts, number_order(item.label for items in found.parts.values() for item in items), found.notes)


def _csv_rows(table: Path) -> Iterator[Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [str(name).strip() for name in reader.fieldnames or []]
            if missing := [column for column in ("path", "label") if column not in names]:
                raise UserError(f"{table}:1: no column {missing[0]!r}: the first line must be path,label[,split]")
            reader.fieldnames = names
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no UTF-8 table with commas: {error}") from error


def _jsonl_rows(table: Path) -> Iterator[Row]:
    number = 0
    try:
        with table.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _jsonl_row(f"{table}:{number}", json.loads(line))
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is no UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{table}:{number}: no JSON object: {error}") from None
    if number == 0:
        raise UserError(f'{table} is empty: give one object a line, as {{"path": "cat/1.jpg", "label": "cat"}}')


def _jsonl_row(where: str, row: object) -> dict[str, str | None]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: no JSON object with path and label but {json.dumps(row)[:40]}")
    for key in ("path", "label"):
        if key not in row:
            raise UserError(f"{where}: no {key!r}: each line must have path and label, and may have split")
    for key in ("path", "split"):
        if key in row and not isinstance(row[key], str):
            raise UserError(f"{where}: the {key} {row[key]!r} is no text")
    return {key: label_text(row[key], where) if key == "label" else row[key] for key in _COLUMNS if key in row}


def _collect(table: Path, rows: Iterator[Row]) -> Found:
    parts: Parts = defaultdict(list)
    seen: dict[Path, tuple[int, str, str]] = {}
    repeated = 0
    for line, row in rows:
        item, part = _read_row(table, line, row)
        assert isinstance(item.source, Path)
        before, label, part_before = seen.setdefault(item.source, (line, item.label, part))
        if (label, part_before) != (item.label, part):
            raise UserError(f"{table}:{line}: {item.key} stands on line {before} as {label} ({part_before})")
        if before == line:
            parts[part].append(item)
        else:
            repeated += 1
    notes = [f"{repeated} repeated lines of {table.name}: left out"] if repeated else []
    return Found(dict(parts), None, notes)


def _read_row(table: Path, line: int, row: Mapping[str, str | None]) -> tuple[Item, str]:
    values = {column: (row.get(column) or "").strip() for column in _COLUMNS}
    for column in _COLUMNS:
        if not values[column] and (column != "split" or column in row):
            raise UserError(f"{table}:{line}: the column {column!r} is empty")
    part = SPLIT_OF.get((values["split"] or "train").lower())
    if part is None:
        raise UserError(f"{table}:{line}: unknown split {values['split']!r} (known: train, val, test)")
    path = table.parent / values["path"]
    if not path.is_file():
        raise UserError(f"{table}:{line}: no file {path}; paths count from the table's folder")
    return Item(Path(values["path"]).as_posix(), values["label"], path), part
