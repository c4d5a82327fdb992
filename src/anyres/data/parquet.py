"""Parquet files with a column of images (bytes, or {bytes, path} as Hugging Face writes them) and one of labels, or of
lists of labels.

Up to 1 GiB of files is read into memory; more is copied once into the cache as Arrow files, which are mapped: a row
is then read from the disk when it is asked for, since parquet itself cannot be read row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from anyres.config import UserError, nearest, need
from anyres.data.raw_dataset import SPLIT_OF, Found, Item, LabelParser, Parts, keys_of, number_order, split_of
from anyres.flow import Stored
from anyres.storage import DRAFT, atomic_write, cache_root, locked

_IN_MEMORY = 2**30  # bytes of parquet files
_BATCH = 256  # rows copied at once


@dataclass(frozen=True)
class Cell:
    """One image in a column of Arrow memory."""

    column: Any  # pyarrow.ChunkedArray of binary or of {bytes, path}
    row: int

    def read(self) -> bytes:
        """The image's bytes. Raises ValueError when the cell is empty."""
        value = self.column[self.row].as_py()
        data: bytes | None = value["bytes"] if isinstance(value, dict) else value
        if not data:
            raise ValueError("the cell is empty")
        return data


def read_parquet(paths: Sequence[Path]) -> Found:
    """All rows of ``paths``: columns ``image``, ``label`` (or ``labels``; lists: multi-label) and ``split`` if wanted,
    else the file's name says it."""
    need("pyarrow", extra="data", purpose=f"{paths[0]}: reading parquet files")
    import pyarrow.parquet as pq

    parts: Parts = {}
    orders: list[Sequence[str]] = []
    reader = LabelParser()
    copied = sum(path.stat().st_size for path in paths) > _IN_MEMORY
    for key, path in zip(keys_of(paths), paths, strict=True):
        table = _open(path, copied)
        if not table.num_rows:
            raise UserError(f"{path} has no rows")
        reader.names = names = _class_names(table.schema.metadata)
        splits = _splits(path, key, table)
        column = _label_column(table.column_names)
        missing = "" if column else _no_column(path, "label", pq.read_schema(path).names)
        labels = table[column].to_pylist() if column else []
        for row in range(table.num_rows):
            where = f"{key} row {row}"
            read = reader.read(labels[row], where) if column else reader.miss(missing)
            parts.setdefault(splits[row], []).append(Item(where, read, _image(path, table, row)))
        if names:
            orders.append(names)
    if any(order != orders[0] for order in orders):
        raise UserError(f"{paths[0].parent}: the parquet files name different classes")
    note = f"{len(paths)} parquet files are mapped from copies in {_copies()}"
    found = Found(parts, None, [note] if copied else [], bool(reader.several), reader.unlabelled)
    return replace(found, order=orders[0] if orders else number_order(found.items))


def _label_column(names: Sequence[str]) -> str | None:
    return next((name for name in ("label", "labels") if name in names), None)


def _no_column(path: Path, column: str, names: Sequence[str]) -> str:
    return f"{path} has no column {column!r}{nearest(column, names, 1)} (columns: {', '.join(names)})"


def _open(path: Path, copied: bool) -> Any:
    """The columns that are needed, in memory or mapped. Raises UserError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _check(path, file.schema_arrow)
        columns = [name for name in ("image", "label", "labels", "split") if name in file.schema_arrow.names]
        if not copied:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is no parquet file that can be read: {' '.join(str(error).split())}") from None
    copy = _copy(path, file, columns)
    try:
        return _mapped(copy)
    except (pa.ArrowException, OSError, ValueError):  # the copy is damaged, not the file
        copy.unlink(missing_ok=True)
        return _mapped(_copy(path, file, columns))


def _mapped(copy: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(copy))).read_all()


def _check(path: Path, schema: Any) -> None:
    import pyarrow as pa

    if "image" not in schema.names:
        raise UserError(_no_column(path, "image", schema.names))
    kind = schema.field("image").type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise UserError(f"{path}: the column 'image' holds {kind}, neither bytes nor {{bytes, path}}")


def _copies() -> Path:
    return cache_root() / "parquet"


def _copy(path: Path, file: Any, columns: list[str]) -> Path:
    """The file's columns as an Arrow file in the cache, made once for its path, size and time of change."""
    import pyarrow as pa

    facts = path.stat()
    said = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    target = _copies() / f"{path.stem}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.arrow"
    try:
        with locked(target.with_suffix(".lock")):
            if not target.is_file():
                for draft in target.parent.glob(f".{escape(target.name)}.*{DRAFT}"):  # of a killed process
                    draft.unlink()
                schema = pa.schema([file.schema_arrow.field(name) for name in columns], file.schema_arrow.metadata)
                with (
                    atomic_write(target) as draft,
                    pa.OSFile(str(draft), "wb") as sink,
                    pa.ipc.new_file(sink, schema) as writer,
                ):
                    for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                        writer.write_batch(batch.select(columns))
    except pa.ArrowException as error:
        raise UserError(f"{path} is no parquet file that can be read: {' '.join(str(error).split())}") from None
    except OSError as error:
        told = error.strerror or error
        raise UserError(f"cannot write {target}: {told}; set ANYRES_CACHE to a folder with more space") from error
    return target


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str]:
    """The class names that Hugging Face keeps in a file's schema, in their order; none: an empty list."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        kind = features["label" if "label" in features else "labels"]
        kind = kind[0] if isinstance(kind, list) else kind.get("feature", kind)  # of a list: what is in it
        return [str(name) for name in kind["names"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return []


def _splits(path: Path, key: str, table: Any) -> list[str]:
    if "split" not in table.column_names:
        return [split_of(key)] * table.num_rows
    named = [str(value or "").strip().lower() for value in table["split"].to_pylist()]
    for row, name in enumerate(named):
        if name not in SPLIT_OF:
            raise UserError(f"{path.name} row {row}: unknown split {name!r} (known: train, val, test)")
    return [SPLIT_OF[name] for name in named]


def _image(path: Path, table: Any, row: int) -> Stored | Path:
    """The cell, or the file that a {bytes, path} without bytes names, counted from the parquet file's folder."""
    import pyarrow as pa

    column = table["image"]
    if pa.types.is_struct(column.type):
        cell = column[row]
        if not cell["bytes"].is_valid and "path" in cell and cell["path"].is_valid:
            return path.parent / str(cell["path"].as_py())
    return Cell(column, row)
