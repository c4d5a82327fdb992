"""``anyres compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import AsJson, Data, Sizes, Split


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="Folders made by `anyres train`; the others are compared with the first."
        ),
    ],
    sizes: Sizes = None,
    data: Data = None,
    split: Split = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure all runs again, their speed in turn in one window.")
    ] = False,
    into: AsJson = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for compare.csv, compare.png and compare.html.")
    ] = None,
) -> None:
    """Runs side by side: size curves with intervals, differences on the same images with tests, speed, cost, settings.

    What `anyres train` and `anyres curve` recorded is compared; a run without a curve is measured now.

    Example: `anyres compare runs/first runs/second --out runs/compared`
    """
    from anyres.cli.console import is_stdout, print_json, report_, stdout
    from anyres.evaluation.tables import console_table
    from anyres.runs.compare import compare as compare_runs
    from anyres.runs.compare_page import differing
    from anyres.storage import write_json

    found = compare_runs(runs, sizes=sizes or (), data=data, split=split, fresh=fresh, out=out)
    if is_stdout(into):
        print_json(found.facts())
    else:
        stdout().print(console_table(found.points, [*found.pairings, *found.apart]))
        changed = differing(found.runs)
        names = ", ".join(list(changed)[:12]) + (f", ... ({len(changed)})" if len(changed) > 12 else "")
        settings = f"settings that differ: {names}" if changed else "the recipes are the same in every setting"
        report_(*found.summary(), *found.cautions(), settings)
    if into is not None and not is_stdout(into):
        write_json(into, found.facts())
    if out:
        report_(f"written: {out / 'compare.csv'}, {out / 'compare.png'}, {out / 'compare.html'}")
