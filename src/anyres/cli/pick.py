"""``anyres pick``."""

from __future__ import annotations

from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import RunFolder

NO_SIZE = 3
"""The exit code where no size keeps the bounds."""


@app.command()
def pick(
    run: RunFolder,
    bound: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            "--min-map",
            "--min-score",
            "--bound",
            help="Least top-1 accuracy, such as 0.9 (of several labels: mAP; of class maps: mIoU); of an error, such "
            "as MAE, the most.",
        ),
    ] = None,
    max_ms: Annotated[float | None, typer.Option(help="Longest time for one image, in milliseconds.")] = None,
) -> None:
    """Name the cheapest size that is accurate enough, or the most accurate that is fast enough (after `curve`).

    Where no size is, that is the answer, with the best there is, and the exit code is 3.

    Example: `anyres pick runs/first --min-top1 0.9`
    """
    from anyres.cli.console import report_, suggest
    from anyres.evaluation.choice import NothingFits
    from anyres.runs.pick import pick as choose

    try:
        found = choose(run, bound, max_ms)
    except NothingFits as answer:
        report_(str(answer))
        raise typer.Exit(NO_SIZE) from None
    report_(
        f"{found.size}  {found.headline.name} {found.headline.text(found.best.value)}, "
        f"{found.cost.latency_ms:.2f} ms an image, {found.cost.macs / 1e6:.0f} M MACs"
    )
    suggest(f"anyres predict {run} photo.jpg --size {found.size}", f"anyres bench model {run} --sizes {found.size}")
