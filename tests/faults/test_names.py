"""Names are data: of files, classes, models and folders, wherever they come out.

Situations: escape sequences, formulas, dollars, markup, emoji codes, marks that turn the direction of writing, bytes
that are no UTF-8, 10,000 characters; on a terminal, in CSV, in pictures, on the report's page.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

from anyres.cli.console import report_, say, stdout
from anyres.config import printable
from anyres.evaluation.confusion import Confusion, write_tables
from anyres.evaluation.page import FactGroup, ReportPage
from anyres.evaluation.plots.bar_chart import bars
from anyres.evaluation.plots.curve import png
from anyres.evaluation.plots.heatmap import heat_map
from anyres.evaluation.report import write_html
from anyres.evaluation.tables import console_table
from anyres.flow import Cost, Estimate, Metric, Size, SizeResult
from anyres.runs.stderr import StderrHandler
from anyres.storage import write_rows
from tests.command import anyres
from tests.conftest import TinyRun

NAMES = (
    r"$\frac{1$",
    "$x^$",
    "a $1$ b",
    "[bold]x[/b]",
    "[/b]",
    ":smile:",
    "caf\udce9",
    "\ud800",
    "\x1b]0;title\x07\x1b[2J",
    "\u202eevil",
    "=cmd|' /C calc'!A0",
    "@x",
    "-1+2",
    "-5",
    "line\nbreak",
    "<script>",
    "x" * 10_000,
    "",
)


def printed(*names: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for name in names:
            table = Table(name, title=name)
            table.add_row(name)
            stdout(20_000).print(table)
            report_(name)
    return out.getvalue()


def test_a_terminal_gets_names_as_they_are_and_no_command() -> None:
    said = printed(*NAMES)
    assert not set("\x1b\x07\u202e\udce9\ud800") & set(said)
    for shown in (r"$\frac{1$", "[bold]x[/b]", ":smile:", r"caf\xe9", r"\ud800", r"\x1b]0;title\x07", r"\u202eevil"):
        assert said.count(shown) >= 4, shown


def test_lines_on_stderr_too(capsys: pytest.CaptureFixture[str]) -> None:
    handler = StderrHandler()
    for name in NAMES:
        say(f"error: {name}")
        handler.emit(logging.LogRecord("anyres", logging.INFO, "", 0, "%s", (name,), None))
    said = capsys.readouterr().err
    assert said.count("\n") == 2 * len(NAMES)
    assert not set("\x1b\x07\u202e\udce9\ud800") & set(said)


def test_tables_hold_no_formula_and_are_utf8(tmp_path: Path) -> None:
    k = np.arange(len(NAMES))
    write_tables({Size(32, 32): Confusion(NAMES, k, k[::-1].copy(), np.ones(len(k), np.int64))}, tmp_path)
    for file in ("per_class.csv", "confusion.csv"):
        rows = list(csv.reader((tmp_path / file).read_text(encoding="utf-8").splitlines()))
        assert len(rows) == len(NAMES) + 1
        cells = [row[1] for row in rows[1:]]
        assert cells[NAMES.index("-5")] == "-5"  # a number, as numbers are
        assert cells[NAMES.index("@x")] == "'@x"
        assert cells[NAMES.index("caf\udce9")] == r"caf\xe9"
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@") or "\x1b" in cell]
    write_rows(tmp_path / "n.csv", [[-1.5, "-1.5", "-a", "+1", " =1+1"]])
    assert (tmp_path / "n.csv").read_text() == "-1.5,-1.5,'-a,+1,' =1+1\n"


TOP1 = Metric("top1", "top-1", interval="Wilson")


def result(model: str) -> SizeResult:
    return SizeResult(model, Size(32, 32), {"top1": Estimate(0.5, 0.4, 0.6)}, (TOP1,), 10, Cost(1.0, 1000.0, 10**6))


def test_pictures_draw_any_name(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    k = np.arange(len(NAMES))
    assert heat_map(Confusion(NAMES, k, k, np.ones(len(k), np.int64)), title=NAMES[0], dpi=40)
    assert png([result(name) for name in NAMES[:6]], title=NAMES[1])
    bars([(name, name, 1.0) for name in NAMES[:10]], tmp_path / "bars.png", NAMES[0])
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def test_the_page_and_the_table_take_any_name(tmp_path: Path) -> None:
    points = [result(name) for name in NAMES[:6]]
    page = ReportPage(
        title=NAMES[6], claim=NAMES[8], points=points, notes=NAMES, facts=[FactGroup(n, [(n, n)]) for n in NAMES]
    )
    write_html(tmp_path / "report.html", page)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert r"caf\xe9" in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        stdout().print(console_table(points))
    assert "[bold]x[/b]" in out.getvalue()


def test_names_that_are_no_utf8_from_the_folder_to_the_report(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A class folder and an image from an old archive, scored by a run that was trained on others of that kind."""
    from anyres.runs.opened import load
    from anyres.runs.report import report_on

    trained = load(tiny_run.folder)
    images = trained.images()
    strange = tuple(os.fsdecode(name) for name in (b"caf\xe9", b"$\\frac{1$", b"\x1b[2J"))
    records = tuple(replace(record, name=f"{strange[0]}/{record.name}") for record in images.source.records)
    images.source = replace(images.source, classes=strange, records=records, notes=strange)
    report_on(trained, images, [Size(32, 32)], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert r"caf\xe9" in html
    assert "\x1b" not in html
    answer = anyres("predict", tiny_run.folder, tmp_path / "no\udce9\x1b[2J")
    assert answer.code == 2
    assert r"no\xe9\x1b[2J" in answer.err


def test_what_is_spelled_out() -> None:
    assert printable("a\x1b\x9b\udcff\ud801\u2028b") == r"a\x1b\x9b\xff\ud801\u2028b"
    assert printable("naïve 日本 👩‍🔬") == "naïve 日本 👩‍🔬"
    assert len(printable("x" * 10_000, 100)) == 100
