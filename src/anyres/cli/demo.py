"""``anyres demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.config import UserError


@app.command()
def demo(
    full: Annotated[
        bool, typer.Option("--full", help="The longer one: four views of every photograph a step.")
    ] = False,
    segment: Annotated[
        bool, typer.Option("--segment", help="A class for each pixel instead: both lungs on chest films.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where curve.csv, curve.png and report.html go; runs/demo, -full or -segment if not given."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both trainings.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Fewer for a quick look; the recipe's if not given.")
    ] = None,
) -> None:
    """Train an any-size model and its single-size twin on real photographs and compare them at many sizes.

    Example: `anyres demo --epochs 2 --out runs/quick`
    """
    if full and segment:
        raise UserError("--full and --segment are two demos: give one of them")
    from anyres.cli.console import report_, stdout
    from anyres.evaluation.tables import console_table
    from anyres.runs.demo import KINDS, DemoName, run_demo

    name: DemoName = "full" if full else "segment" if segment else "sizes"
    folder = out or Path(KINDS[name].folder)
    found = run_demo(folder, seed, epochs, name)
    stdout().print(console_table(found.results, found.pairings))
    report_(*found.cautions, found.claim)
    report_(f"written: {folder / 'curve.csv'}, {folder / 'curve.png'}, {folder / 'report.html'}")
