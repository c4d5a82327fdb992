"""A curve as a CSV file: SizeResults written and read. Imports no torch."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from anyres.config import UserError
from anyres.flow import Cost, Estimate, Metric, Size, SizeResult
from anyres.storage import atomic_write

FIRST = ("model", "height", "width")
COST = ("n", "latency_ms", "macs", "images_per_s")
NOT_A_METRIC = {*FIRST, *COST, "latency_low_ms", "latency_high_ms", "disturbed"}


def write_csv(results: Sequence[SizeResult], path: Path) -> None:
    """Write ``results``, of one task, as CSV, whole or not at all; numbers survive exactly.

    Columns: model, height, width, the headline metric, n, latency_ms, macs, the headline's 95 % interval, the other
    metrics, and more of the cost.
    """
    rows = [result.row() for result in results]
    columns = list(dict.fromkeys(column for row in sorted(rows, key=len, reverse=True) for column in row))
    with atomic_write(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns or [*FIRST, "top1", *COST], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_csv(path: Path, known: Mapping[str, Metric]) -> list[SizeResult]:
    """The SizeResults of a file written by ``write_csv``; ``known``: metrics by key, others are read as plain numbers,
    higher being better. Raises UserError."""
    if not path.is_file():
        raise UserError(f"there is no curve at {path}: `anyres curve` writes one")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            keys = [c for c in columns if c not in NOT_A_METRIC and not c.endswith(("_low", "_high"))]
            missing = [c for c in (*FIRST, *COST) if c not in columns] or ([] if keys else ["top1"])
            if missing:
                raise UserError(f"{path} is no curve: it lacks the column {missing[0]!r}")
            described = tuple(known.get(key, Metric(key, key, unit="")) for key in keys)
            return [_read_row(row, described) for row in rows]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"{path} is no curve: {error}") from error


def _read_row(row: Mapping[str, str], described: tuple[Metric, ...]) -> SizeResult:
    metrics = {
        metric.key: Estimate(
            float(row[metric.key]),
            float(row.get(f"{metric.key}_low") or math.nan),
            float(row.get(f"{metric.key}_high") or math.nan),
        )
        for metric in described
    }
    cost = Cost(
        float(row["latency_ms"]),
        float(row["images_per_s"]),
        int(row["macs"]),
        float(row.get("latency_low_ms") or math.nan),
        float(row.get("latency_high_ms") or math.nan),
        row.get("disturbed") == "True",
    )
    size = Size(int(row["height"]), int(row["width"]))
    return SizeResult(row["model"], size, metrics, described, int(row["n"]), cost)
