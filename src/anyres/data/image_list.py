"""The images of a bulk prediction: from files, folders, patterns, lists, tables and tar shards, kept in one file.

The list is made once, before the first image is answered. A row number names an image from then on, so that whatever
continues the work, another process or another machine, means the same image.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anyres.config import UserError, need
from anyres.data.patterns import expand
from anyres.data.raw_dataset import ENDINGS, cut, readable_text
from anyres.data.shards import Slice
from anyres.data.table_file import read_rows
from anyres.data.tar_index import members
from anyres.data.wanted_files import wanted_files
from anyres.flow import Record
from anyres.storage import as_path, atomic_write

STDIN = "-"
"""The word for a list that comes by the standard input."""
LIST, STARTS = "images.jsonl", "images.starts.npy"


class ListedImage(NamedTuple):
    """One image: what answers call it, its file, and where its bytes lie in that file (0, -1: all of it)."""

    name: str
    file: str
    offset: int = 0
    size: int = -1

    def record(self) -> Record:
        """To be decoded."""
        path = Path(self.file)
        return Record(path if self.size < 0 else Slice(path, self.offset, self.size), -1, self.name)


class Word(NamedTuple):
    """One word of a command: what tells it from others, and the images it stands for, listed when they are asked for,
    with notes on what was left out."""

    identity: str
    images: Callable[[list[str]], Iterable[ListedImage]]


def read_words(words: Sequence[str], stdin: Callable[[], bytes] | None = None) -> list[Word]:
    """What ``words`` mean.

    A word is a file, a folder or a pattern (``wanted_files``); a list or table of paths (``.txt``, ``.csv``,
    ``.jsonl``, ``.parquet``); a ``.tar``, whose members are called ``shard.tar/member.jpg``; or ``-``, a list that
    ``stdin`` gives (None: this process's). Paths of a list count from its folder. Raises UserError for lists and shards
    that cannot be read.
    """
    return [_read(word, stdin or _stdin) for word in words]


def wanted_images(words: Sequence[Word]) -> tuple[list[ListedImage], list[str]]:
    """The images of all words in their order, each once; and notes on what was left out. Raises UserError where there
    is none, and where a folder or a list cannot be read."""
    found: dict[str, ListedImage] = {}
    notes: list[str] = []
    count = 0
    for word in words:
        for image in word.images(notes):
            count += 1
            found.setdefault(image.name, image)
    if not found:
        raise UserError("no image is named: give files, folders, lists with paths or tar shards with images")
    if count > len(found):
        notes.append(f"{count - len(found)} images are named more than once: answered once")
    return list(found.values()), notes


def _read(word: str, stdin: Callable[[], bytes]) -> Word:
    path = as_path(word)
    if word == STDIN:
        content = stdin()
        return Word(f"- {hashlib.sha256(content).hexdigest()}", lambda _: _files(_lines(content, Path())))
    if path.suffix.lower() in LISTS and path.is_file():
        return _list(word, path)
    if path.suffix.lower() == ".tar" and not path.is_dir():
        shards = expand(str(path))
        facts = [shard.stat() for shard in shards]
        says = hashlib.sha256(repr([(each.st_size, each.st_mtime_ns) for each in facts]).encode()).hexdigest()
        return Word(f"{word} {says}", lambda _: (image for shard in shards for image in _members(shard)))

    def found(notes: list[str]) -> Iterator[ListedImage]:
        files, said = wanted_files([word])
        notes += said
        return _files(map(str, files))

    return Word(word, found)


def _list(word: str, table: Path) -> Word:
    """A word for a list or table of paths."""
    read = LISTS[table.suffix.lower()]
    try:
        digest = hashlib.sha256(table.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{table} cannot be read: {error.strerror}") from error
    return Word(f"{word} {digest}", lambda _: _files(read(table)))


def _files(paths: Iterable[str]) -> Iterator[ListedImage]:
    return (ListedImage(readable_text(path), os.path.abspath(path)) for path in paths)  # noqa: PTH100


def _members(path: Path) -> Iterator[ListedImage]:
    """The images of a tar shard, in its order."""
    for member in members(path):
        base = member.name.rpartition("/")[2]
        if not base.startswith(".") and f".{base.rpartition('.')[2].lower()}" in ENDINGS:
            yield ListedImage(readable_text(f"{path}/{member.name}"), str(path.absolute()), member.offset, member.size)


def _stdin() -> bytes:
    return sys.stdin.buffer.read()


def _lines(content: bytes, root: Path) -> list[str]:
    """The paths of a list: one a line, or between zero bytes, as ``find -print0`` writes them."""
    lines = content.split(b"\0") if b"\0" in content else content.removeprefix(b"\xef\xbb\xbf").splitlines()
    return [_below(root, os.fsdecode(line)) for line in lines if line.strip()]


def _below(root: Path, path: str) -> str:
    return str(root / path)


def _in_text(table: Path) -> list[str]:
    return _lines(table.read_bytes(), table.parent)


def _in_csv(table: Path) -> Iterator[str]:
    rows = read_rows(table)
    next(rows)
    for line, cells in rows:
        yield _below(table.parent, _named(cells.get("path"), f"{table}:{line}"))


def _in_jsonl(table: Path) -> Iterator[str]:
    for number, line in enumerate(table.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f'{table}:{number}: no JSON object: write {{"path": "photo.jpg"}}') from None
            yield _below(table.parent, _named(row.get("path") if isinstance(row, dict) else None, f"{table}:{number}"))


def _in_parquet(table: Path) -> list[str]:
    need("pyarrow", extra="data", purpose=f"{table}: reading parquet files")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(table).names
        if "path" not in names:
            raise UserError(f"{table} has no column 'path' with the images' paths (columns: {', '.join(names)})")
        paths = pq.read_table(table, columns=["path"])["path"].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table} is no parquet file that can be read: {' '.join(str(error).split())}") from None
    return [_below(table.parent, _named(path, f"{table} row {row}")) for row, path in enumerate(paths)]


def _named(path: object, where: str) -> str:
    if not isinstance(path, str) or not path.strip():
        raise UserError(f"{where}: no path of an image but {cut(repr(path), 80)}")
    return path.strip()


LISTS: dict[str, Callable[[Path], Iterable[str]]] = {
    ".txt": _in_text,
    ".csv": _in_csv,
    ".jsonl": _in_jsonl,
    ".parquet": _in_parquet,
}
"""Readers of lists and tables of paths, by their ending."""


@dataclass(frozen=True)
class StoredList:
    """A list of images on disk, in parts of ``rows`` images; the last may have fewer. Of a part only its own lines are
    read, so a worker needs no more memory for ten million images than for ten."""

    folder: Path
    count: int
    rows: int

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.count // self.rows)

    def everywhere(self) -> StoredList:
        """The same by its full path, for processes that run in other folders."""
        return replace(self, folder=self.folder.absolute())

    def rows_of(self, part: int) -> int:
        """How many images a part has."""
        return min(self.rows, self.count - part * self.rows)

    def read(self, part: int) -> list[ListedImage]:
        """The images of one part, from 0 on. Raises OSError, and UserError for a list that is damaged."""
        start = int(np.load(self.folder / STARTS, mmap_mode="r")[part])
        with (self.folder / LIST).open("rb") as file:
            file.seek(start)
            lines = [file.readline() for _ in range(self.rows_of(part))]
        try:
            return [ListedImage(*json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            raise UserError(f"{self.folder / LIST} is damaged: remove {self.folder} to begin anew") from None


def store_list(folder: Path, images: Sequence[ListedImage], rows: int) -> StoredList:
    """Write the list into ``folder``, for parts of ``rows`` images."""
    starts = []
    with atomic_write(folder / LIST) as draft, draft.open("wb") as file:
        for first in range(0, len(images), rows):
            starts.append(file.tell())
            file.writelines(json.dumps(image).encode() + b"\n" for image in images[first : first + rows])
    with atomic_write(folder / STARTS) as draft, draft.open("wb") as file:
        np.save(file, np.array(starts, dtype=np.int64))
    return StoredList(folder, len(images), rows)
