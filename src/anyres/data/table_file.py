"""The rows of a ``.csv`` table as spreadsheets and people write them, by the names of its columns.

Between cells stand commas, semicolons, tabs or bars, whichever part the first line into names; ``sep=;`` before it is
Excel's. A row that does not fit under the names is refused, not read as something else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from anyres.config import UserError, nearest
from anyres.data.raw_dataset import shorten

Cells = Mapping[str, str | None]
"""Of a row, by the columns' names; None: the row ends before it."""
_BETWEEN = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_QUOTES = "is a quotation mark missing, or one too many? (one within quotes is written twice)"


def read_rows(table: Path) -> Iterator[tuple[int, Cells]]:
    """The first line's number and its names, then every row's first line number and its cells. Raises UserError."""
    line = 1
    try:
        with table.open(encoding="utf-8-sig", newline="") as opened:
            file = io.StringIO(opened.read(), newline="")  # whoever stops in the middle leaves nothing open
        skipped, first, between = _start(file)
        reader = csv.reader(chain([first], file), delimiter=between, skipinitialspace=True, strict=True)
        names: list[str] = []
        while True:
            line = skipped + reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                break
            if not names:
                names = _names(f"{table}:{line}", cells, first)
                yield line, dict.fromkeys(names)
            elif any(cell.strip() for cell in cells):  # spreadsheets add lines of nothing but commas
                yield line, _under(f"{table}:{line}", names, cells, between)
    except UnicodeDecodeError as error:
        raise UserError(f"{table} is no UTF-8 table with commas: {error}; save it as CSV UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{table}:{line}: no row of cells ({error}): {_QUOTES}") from error
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}") from error


def lacking(where: str, column: str, names: list[str], first: str = "") -> str:
    """What to say of a table whose first line does not name a column."""
    told = f"; it is {shorten(first.strip())}" if first.strip() else ""
    return (
        f"{where}: no column {column!r}: the first line must be path,label[,split]{told}"
        f"{nearest(column, [name for name in names if name != column], 1)}"
    )


def _start(file: io.StringIO) -> tuple[int, str, str]:
    """How many lines stand before the names, the line of names, and the sign between cells."""
    first = file.readline()
    said = first.strip().lower()
    if said.startswith("sep=") and len(said) == 5:
        return 1, file.readline(), said[4]
    if said == "sep=":  # a tab, which was stripped
        return 1, file.readline(), "\t"
    for between in _BETWEEN:
        if "path" in (name.strip(' "') for name in first.split(between)):
            return 0, first, between
    return 0, first, ","


def _names(where: str, cells: list[str], first: str) -> list[str]:
    names = [name.strip() for name in cells]
    if "path" not in names:
        raise UserError(lacking(where, "path", names, first))
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column {twice!r} stands twice: rename or remove one")
    return names


def _under(where: str, names: list[str], cells: list[str], between: str) -> Cells:
    """A row's cells by the names above them. Raises UserError for one too many, and for one that has eaten a line."""
    if any(cell.strip() for cell in cells[len(names) :]):
        sign = _BETWEEN.get(between, repr(between))
        raise UserError(
            f"{where}: {len(cells)} cells under {len(names)} columns: put a name with {sign} in double quotes"
        )
    for name, cell in zip(names, cells, strict=False):
        eaten = any(line.count(between) >= len(names) - 1 for line in cell.splitlines()[1:])
        if ("\n" in cell or "\r" in cell) and (eaten or name in ("path", "label", "labels", "split")):
            raise UserError(f"{where}: the cell under {name!r} goes over several lines: {_QUOTES}")
    return dict(zip(names, [*cells[: len(names)], *[None] * (len(names) - len(cells))], strict=True))
