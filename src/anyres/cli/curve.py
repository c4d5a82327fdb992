"""``anyres curve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import Classes, Data, Model, Sizes, Split, Weights


@app.command()
def curve(
    model: Model,
    more: Annotated[list[str] | None, typer.Argument(metavar="[SIZE]...", help="More sizes.")] = None,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    sizes: Sizes = None,
    classes: Classes = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where they go; the run folder if not given.")] = None,
) -> None:
    """Accuracy, cost and speed at every size: a table, `curve.csv`, `curve.png` and `report.html` in the run folder.

    Example: `anyres curve runs/first --sizes 64:320:32 320x192`
    """
    from anyres.cli.console import report_, suggest
    from anyres.cli.results import print_evaluation
    from anyres.runs import evaluate as runs
    from anyres.runs.opened import ModelSpec

    wanted = runs.parse([*(sizes or []), *(more or [])] or ["64:320:32"])
    evaluation = runs.curve(ModelSpec(model, weights, classes), data=data, split=split, sizes=wanted, out=out)
    print_evaluation(evaluation)
    runs.log_images(evaluation)
    folder = out or Path(model)
    report_(f"written: {folder / 'curve.csv'}, {folder / 'curve.png'}, {folder / 'report.html'}")
    found = evaluation.best.result
    if found.headline.unit == "%":
        suggest(f"anyres pick {folder} --bound {found.best.value - 0.01:.2f}", f"anyres pick {folder} --max-ms 20")
    else:
        suggest(f"anyres pick {folder} --max-ms 20")
