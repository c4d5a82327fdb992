"""Answers of a bulk prediction as a parquet file: a row for each image, written a part at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyres.config import need
from anyres.storage import atomic_write

COLUMNS = ("image", "class", "probability", "size", "error")


def write_answer_parquet(path: Path, parts: Iterable[Sequence[Mapping[str, Any]]], several: bool) -> None:
    """Write rows with ``COLUMNS``, whole or not at all; what is None is null.

    ``several``: an image has any number of labels, so that class and probability are lists. Raises UserError where
    pyarrow is missing.
    """
    check_parquet(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.float32()
    kinds = (text, pa.list_(text) if several else text, pa.list_(number) if several else number, text, text)
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    with atomic_write(path) as draft, pq.ParquetWriter(draft, schema) as writer:
        for rows in parts:
            writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema))


def check_parquet(path: Path) -> None:
    """Raises UserError where parquet cannot be written."""
    need("pyarrow", extra="data", purpose=f"{path}: writing parquet files")
