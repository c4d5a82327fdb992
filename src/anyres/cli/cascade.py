"""``anyres cascade``."""

from __future__ import annotations

from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import BACKEND, Data, RunFolder, Sizes


@app.command()
def cascade(
    run: RunFolder,
    sizes: Sizes = None,
    max_loss: Annotated[float, typer.Option(help="Points of top-1 that it may lose against the largest size.")] = 0.3,
    data: Data = None,
    backend: Annotated[str, typer.Option("--backend", help=BACKEND)] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
) -> None:
    """Choose a cascade: every image is seen small first, and larger only where the small look is not sure enough.

    One half of the held-out images chooses, the other half measures; `anyres predict --cascade` then uses it.

    Example: `anyres cascade runs/first --sizes 64,96,128 --max-loss 0.3`
    """
    from anyres.runs.cascade import EngineOptions, choose_cascade
    from anyres.runs.evaluate import parse
    from anyres.runs.inputs import evaluated_sizes
    from anyres.runs.opened import open_run

    wanted = parse(sizes or ()) or evaluated_sizes(open_run(run).recipe)
    choose_cascade(run, wanted, max_loss, EngineOptions(backend, batch=batch_size), data)
