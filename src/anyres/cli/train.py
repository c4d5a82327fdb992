"""``anyres train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import Data, Overrides
from anyres.cli.habits import WithHabits


@app.command(cls=WithHabits)
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="See `anyres recipes` and `anyres models`.")],
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; runs/NAME if not given.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Start from known weights (deit_base.224; auto: the best), a file, a URL, a hub id, a run.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads; if not given as many as are fastest here.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps; the best here if not given.")
    ] = None,
) -> None:
    """Train a model; the same command again resumes an interrupted run, or says that it is done.
    Other programs' words are taken too: `--epochs 5`, `--batch 32`, `--imgsz 128`, `--lr`, `--seed`, `--amp`.

    Example: `anyres train restv2_nano --data groceries --out runs/first train.epochs=2`
    """
    from anyres.cli.console import report_, suggest
    from anyres.cli.results import print_evaluation
    from anyres.runs import train as runs

    given = [*(overrides or []), *([f"train.threads={threads}"] if threads is not None else [])]
    run = runs.train(recipe, given, data=data, out=out, weights=weights, device=device)
    if run.evaluation is not None:
        print_evaluation(run.evaluation)
    files = [run.folder / name for name in ("model.safetensors", "report.html")]
    report_(f"written: {', '.join(str(file) for file in files if file.is_file())}")
    if run.evaluation is not None:
        suggest(f"anyres predict {run.folder} photo.jpg", f"anyres curve {run.folder} --sizes 64:320:32")
