"""Where clips come from: a folder of films for each class, a table of films, Kinetics' table, or the built-in pace."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from anyres.config import UserError, nearest
from anyres.data.clips import Clip
from anyres.data.folders import subfolders, walk
from anyres.data.pace import PACE, read_pace
from anyres.data.raw_dataset import SPLIT_OF, Found, Item, Parts, folder_split, shorten
from anyres.data.table_file import Cells, read_rows
from anyres.data.video import FILM_ENDINGS
from anyres.storage import as_path

TOLD = 20
"""Films that are left out and named, each on a line."""
KINETICS = ("label", "youtube_id", "time_start", "time_end", "split")
"""The columns of Kinetics' tables."""


def read_clips(data: str) -> Found:
    """Films by split, with their classes as text. Raises UserError.

    ``root/CLASS/FILM`` or ``root/train/CLASS/FILM`` (+ val, + test); a ``.csv`` with the columns path,label[,split]
    and, for a part of a film, start,stop in seconds; or one of Kinetics (label,youtube_id,time_start,time_end,split),
    whose films are looked for in its folder and below, as ``ID_000010_000020.mp4`` (a part already) or ``ID.mp4``.
    """
    path = as_path(data)
    if data in PACE and not path.exists():
        return read_pace(data)
    if path.is_dir():
        return _folder(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _kinetics(path) if "youtube_id" in _first_line(path) else _table(path)
    siblings = [each.name for each in path.absolute().parent.iterdir()] if path.absolute().parent.is_dir() else []
    raise UserError(
        f"no folder or table of films {data}{nearest(path.name, [*siblings, *PACE], 1)} (give a folder of class "
        f"folders with films, a .csv table, or a built-in set: {', '.join(PACE)})"
    )


def _folder(root: Path) -> Found:
    notes: list[str] = []
    folders = subfolders(root)
    splits = {folder: split for folder in folders if (split := folder_split(folder.name)) and subfolders(folder)}
    if "train" not in splits.values():
        return Found({"train": list(_classes(root, root, notes))}, None, notes)
    parts: Parts = {}
    for folder in folders:
        if folder not in splits:
            notes.append(f"folder {folder.name!r} lies beside the splits: left out")
        elif splits[folder] in parts:
            raise UserError(f"{root} has two folders for the {splits[folder]} split: keep one of them")
        else:
            parts[splits[folder]] = list(_classes(folder, root, notes))
    return Found(parts, None, notes)


def _classes(folder: Path, root: Path, notes: list[str]) -> Iterator[Item]:
    """The films below each class's folder."""
    for of_class in subfolders(folder):
        films = films_in(of_class)
        if not films:
            notes.append(f"class {of_class.name!r} has no films: left out")
        for film in films:
            yield Item(film.relative_to(root).as_posix(), (of_class.name,), Clip(film))


def films_in(folder: Path) -> list[Path]:
    """The films at any depth below a folder, by their endings."""
    return sorted(path for path in walk(folder).strange if path.suffix.lower() in FILM_ENDINGS)


def _first_line(table: Path) -> str:
    try:
        with table.open(encoding="utf-8-sig") as file:
            return file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table} is no table that can be read: {error}") from None


def _table(table: Path) -> Found:
    """path,label[,split][,start,stop]; paths count from the table's folder."""
    parts: Parts = {}
    lost: list[str] = []
    for line, row in islice(read_rows(table), 1, None):
        where = f"{table}:{line}"
        film = table.parent / _cell(row, "path", where)
        label, split = _cell(row, "label", where), _split(where, (row.get("split") or "train"))
        start, stop = (_seconds(where, row, name) for name in ("start", "stop"))
        if not film.is_file():
            lost.append(f"{where}: there is no film {film}: left out")
            continue
        cut = (
            ""
            if start is None and stop is None
            else f" {start or 0:g} to {'its end' if stop is None else f'{stop:g}'} s"
        )
        if start is not None and stop is not None and not start < stop:
            raise UserError(f"{where}: start {start:g} is not before stop {stop:g}")
        clip = Clip(film, start or 0.0, stop)
        parts.setdefault(split, []).append(Item(f"{_cell(row, 'path', where)}{cut}", (label,), clip))
    return Found(_each_once(table, parts), None, _told(lost))


def _kinetics(table: Path) -> Found:
    """Kinetics' own table: films are named by their ids, and often some can no longer be had."""
    films = {path.stem: path for path in films_in(table.parent)}
    parts: Parts = {}
    lost: list[str] = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = [name.strip() for name in reader.fieldnames or ()]
            if missing := next((name for name in KINETICS[:4] if name not in names), None):
                raise UserError(f"{table}:1: no column {missing!r}: Kinetics' tables have {','.join(KINETICS)}")
            for row in reader:
                where = f"{table}:{reader.line_num}"
                label, film = _cell(row, "label", where), _cell(row, "youtube_id", where)
                start, stop = (_seconds(where, row, name) for name in KINETICS[2:4])
                if start is None or stop is None:
                    raise UserError(f"{where}: time_start and time_end must be seconds, as 10 and 20")
                cut = f"{film}_{int(start):06d}_{int(stop):06d}"
                split = _split(where, row.get("split") or "train")
                if cut in films:
                    parts.setdefault(split, []).append(Item(cut, (label,), Clip(films[cut])))
                elif film in films:
                    parts.setdefault(split, []).append(Item(cut, (label,), Clip(films[film], start, stop)))
                else:
                    lost.append(f"{where}: there is no film {cut}.mp4 or {film}.mp4 below {table.parent}: left out")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is no table of cells with commas: {error}") from None
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}") from error
    return Found(_each_once(table, parts), None, _told(lost))


def _cell(row: Cells, name: str, where: str) -> str:
    text = (row.get(name) or "").strip()
    if not text:
        raise UserError(f"{where}: the column {name!r} is empty or missing")
    return text


def _split(where: str, text: str) -> str:
    split = SPLIT_OF.get(text.strip().lower())
    if split is None:
        raise UserError(f"{where}: the split {shorten(text)} is none of train, val, test")
    return split


def _seconds(where: str, row: Cells, name: str) -> float | None:
    text = (row.get(name) or "").strip()
    try:
        value = float(text) if text else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value < float("inf"):
        raise UserError(f"{where}: {name} {shorten(text)} must be seconds from 0 on, as 10 or 2.5")
    return value


def _each_once(table: Path, parts: Parts) -> Parts:
    """The same. Raises UserError for a clip that stands twice."""
    seen: set[str] = set()
    for item in (item for items in parts.values() for item in items):
        if item.key in seen:
            raise UserError(f"{table}: {item.key} stands twice: remove one of the rows")
        seen.add(item.key)
    return parts


def _told(lost: Sequence[str]) -> list[str]:
    more = [f"... {len(lost)} films in all are not there"] if len(lost) > TOLD else []
    return [*lost[:TOLD], *more]
