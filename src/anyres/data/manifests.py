"""Manifests: a ``.csv`` table or a ``.jsonl`` file of path, label or labels, and, if wanted, split."""

from __future__ import annotations

import errno
import json
import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from anyres.config import UserError, first_line
from anyres.data.raw_dataset import SPLIT_OF, Found, Item, LabelParser, Parts, cut, number_order, one_form, shorten
from anyres.data.table_file import Cells, lacking, read_rows

BETWEEN = "|"
"""Stands between the names in a cell of a table's column ``labels``."""


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
        hint = f"{table.name} has classes such as {shorten(joined)}: several labels go in a column 'labels'"
        return replace(found, notes=[*found.notes, hint]) if joined else found
    if "labels" in names:
        return replace(_csv_found(table, _several), several=True)
    if classes and all(_cell(first, name) in ("0", "1") for name in classes):
        return replace(_csv_found(table, partial(_ticked, classes)), order=classes, several=True)
    return replace(_csv_found(table, lambda *_: ()), unlabelled=lacking(f"{table}:1", "label", names))


def _csv_start(table: Path) -> tuple[list[str], Cells]:
    """The names of the columns, and the first row's cells."""
    rows = read_rows(table)
    names = next(rows)[1]
    return list(names), next(rows, (0, {}))[1]


def _csv_found(table: Path, read: Callable[[str, Cells], tuple[str, ...]]) -> Found:
    """The images of a table's rows, whose labels ``read`` takes from the cells."""
    rows = islice(read_rows(table), 1, None)
    return _collect(table, (_row(where := f"{table}:{line}", line, row, read(where, row)) for line, row in rows))


def _cell(row: Cells, name: str) -> str:
    return (row.get(name) or "").strip()


def _one(where: str, row: Cells) -> tuple[str, ...]:
    if not (label := _cell(row, "label")):
        raise UserError(f"{where}: the column 'label' is empty")
    return (label,)


def _several(where: str, row: Cells) -> tuple[str, ...]:
    if row["labels"] is None:
        raise UserError(f"{where}: the row ends before the column 'labels': where there is none, leave it empty")
    names = (name.strip() for name in _cell(row, "labels").split(BETWEEN))
    return tuple(dict.fromkeys(name for name in names if name))


def _ticked(classes: Sequence[str], where: str, row: Cells) -> tuple[str, ...]:
    ticks = {name: _cell(row, name) for name in classes}
    if wrong := next((name for name, tick in ticks.items() if tick not in ("0", "1")), None):
        raise UserError(f"{where}: the column {wrong!r} holds {shorten(ticks[wrong])}: of a class it must be 0 or 1")
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
                    yield _jsonl_row(f"{table}:{number}", number, json.loads(line, object_pairs_hook=_once), reader)
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is no UTF-8 text: {error}") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and a key that stands twice
        raise UserError(f"{table}:{number}: no JSON object: {first_line(error)}") from None
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}") from error
    if number == 0:
        raise UserError(f'{table} is empty: give one object a line, as {{"path": "cat/1.jpg", "label": "cat"}}')


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object's values. Raises ValueError for two of one name."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shorten(next(name for name in names if names.count(name) > 1))} stands twice")
    return made


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
            raise UserError(f"{where}: the {key} {shorten(row[key])} is no text")
    return _row(where, line, row, labels)


def _row(where: str, line: int, values: Mapping[str, str | None], labels: tuple[str, ...]) -> Row:
    """A line's path and split, without blanks around them. Raises UserError where one is empty."""
    cells = {column: (values.get(column) or "").strip() for column in ("path", "split")}
    for column, cell in cells.items():
        if not cell and (column == "path" or column in values):
            raise UserError(f"{where}: the column {column!r} is empty")
    return Row(line, cells["path"], labels, cells["split"] or "train")


def _collect(table: Path, rows: Iterable[Row]) -> Found:
    """The images of the rows, each file once, however its path is spelled."""
    parts: Parts = defaultdict(list)
    seen: dict[object, tuple[int, tuple[str, ...], str]] = {}
    repeated, files = 0, _Files(table.parent)
    for row in rows:
        part = SPLIT_OF.get(row.split.lower())
        if part is None:
            raise UserError(f"{table}:{row.line}: unknown split {shorten(row.split)} (known: train, val, test)")
        item, which = files.find(row, f"{table}:{row.line}")
        labels = tuple(map(one_form, row.labels))
        before, labels_before, part_before = seen.setdefault(which, (row.line, labels, part))
        if (labels_before, part_before) != (labels, part):
            told = shorten(", ".join(labels_before) or "nothing").strip("'\"")
            raise UserError(f"{table}:{row.line}: {item.key} stands on line {before} as {told} ({part_before})")
        if before == row.line:
            parts[part].append(item)
        else:
            repeated += 1
    notes = [f"{repeated} repeated lines of {table.name}: left out"] if repeated else []
    return Found(dict(parts), None, notes)


class _Files:
    """The files that paths of a table stand for, counted from ``root``: as they are spelled, else with slashes for
    backslashes, else in another Unicode form."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Path, dict[str, str]] = {}  # of a folder: what lies in it, by its name in one form

    def find(self, row: Row, where: str) -> tuple[Item, object]:
        """The row's image, and what tells its file from every other. Raises UserError where there is none."""
        reason = ""
        for spelled in dict.fromkeys((row.path, row.path.replace("\\", "/"))):
            for path in (self.root / spelled, self._in_another_form(spelled)):
                try:
                    facts = path.stat()
                except (OSError, ValueError) as error:  # a name too long, or with a zero in it
                    absent = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR)
                    told = error.strerror if isinstance(error, OSError) else error
                    reason = reason or ("" if absent else f" ({told})")
                    continue
                if not stat.S_ISREG(facts.st_mode):
                    raise UserError(f"{where}: {path} is no file, but a folder or pipe")
                which = (facts.st_dev, facts.st_ino) if facts.st_nlink == 1 else os.path.normpath(path)
                return Item(Path(spelled).as_posix(), row.labels, path), which
        windows = "; it is written as on Windows" if "\\" in row.path or row.path[1:2] == ":" else ""
        raise UserError(
            f"{where}: no file {cut(str(self.root / row.path))}{reason}; paths count from the table's folder{windows}"
        )

    def _in_another_form(self, spelled: str) -> Path:
        """The path, each folder and file as the disk has it where that is the same name in another form."""
        path = self.root
        if not spelled.isascii():
            for part in Path(spelled).parts:
                path = path / self._listed(path).get(unicodedata.normalize("NFC", part), part)
        return path if path != self.root else self.root / spelled

    def _listed(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                names = [path.name for path in folder.iterdir()]
            except OSError:
                names = []
            self._names[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._names[folder]
