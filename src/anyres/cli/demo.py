"""``anyres demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where curve.csv, curve.png and report.html go.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of both trainings.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Fewer for a quick look; the recipe's if not given.")
    ] = None,
) -> None:
    """Train an any-size model and its single-size twin on real photographs and compare them at many sizes.

    Example: `anyres demo --epochs 2 --out runs/quick`
    """
    from anyres.cli.console import report_, stdout
    from anyres.evaluation.report import console_table
    from anyres.runs.demo import run_demo

    found = run_demo(out, seed, epochs)
    stdout().print(console_table(found.results, found.pairings))
    spent = [
        f"{name}: {run.facts.get('pixels', 0) / 1e9:.2f} G pixels, {run.facts.get('seconds', 0):.0f} s of training"
        for name, run in found.runs.items()
    ]
    report_(*spent, found.claim)
    report_(f"written: {out / 'curve.csv'}, {out / 'curve.png'}, {out / 'report.html'}")
