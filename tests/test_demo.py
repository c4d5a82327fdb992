"""The demo from the command line, one epoch long: what it writes, and what it says."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.command import anyres


@pytest.mark.builtin
def test_the_demo_compares_both_models_at_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    monkeypatch.setenv("COLUMNS", "140")
    done = anyres("demo", "--out", out, "--epochs", 1, "--seed", 3)
    assert done.code == 0, done.err[-3000:]
    with (out / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:7] == ["model", "height", "width", "top1", "n", "latency_ms", "macs"]
    sizes = {
        name: [(int(r["height"]), int(r["width"])) for r in rows if r["model"] == name]
        for name in ("any-size", "single-size")
    }
    assert sizes["any-size"] == sizes["single-size"]
    assert len(rows) == 2 * len(sizes["any-size"]) >= 14
    assert any(h != w for h, w in sizes["any-size"])
    trained = {176, 96, 64, 40}
    assert min(h for h, _ in sizes["any-size"]) < min(trained)
    assert max(h for h, _ in sizes["any-size"]) > max(trained)
    assert all(r["n"] == "661" and 0 < float(r["top1"]) < 1 and float(r["latency_ms"]) > 0 for r in rows)
    for name in ("curve.png", "report.html"):
        assert (out / name).stat().st_size > 20_000
    page = (out / "report.html").read_text()
    assert "any-size" in page
    assert "On the same images" in page
    assert "G pixels" in done.out
    assert "any-size minus single-size" in done.out.replace("\n", " ")
