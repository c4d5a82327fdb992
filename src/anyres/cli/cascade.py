"""``anyres cascade``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import BACKEND, Data, HugePages, RunFolder, Sizes

if TYPE_CHECKING:
    from rich.table import Table

    from anyres.runs.cascade import ChosenCascade


@app.command()
def cascade(
    run: RunFolder,
    sizes: Sizes = None,
    max_loss: Annotated[float, typer.Option(help="Points of top-1 that it may lose against the largest size.")] = 0.3,
    data: Data = None,
    backend: Annotated[str, typer.Option("--backend", help=BACKEND)] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    huge_pages: HugePages = False,
) -> None:
    """Choose a cascade: every image runs at a small size first, and at a larger one only where confidence is low.

    One half of the held-out images chooses, the other half measures; `anyres predict --cascade` then uses it.

    Example: `anyres cascade runs/first --sizes 64,96,128 --max-loss 0.3`
    """
    from anyres.cli.console import report_, stdout
    from anyres.deploy.predictor import EngineOptions
    from anyres.runs.cascade import choose_cascade
    from anyres.runs.evaluate import parse
    from anyres.runs.inputs import evaluated_sizes
    from anyres.runs.opened import open_run

    wanted = parse(sizes or ()) or evaluated_sizes(open_run(run).recipe)
    chosen = choose_cascade(run, wanted, max_loss, EngineOptions(backend, batch_size, huge_pages), data)
    stdout().print(stages_table(chosen))
    report_(result_sentence(chosen))


def stages_table(chosen: ChosenCascade) -> Table:
    """One line for each stage: when it answers, for how many images, its time, and its top-1 alone."""
    from rich.table import Table

    cascade, result = chosen.cascade, chosen.result
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "answers from", "images", "ms an image", "top-1 alone"):
        table.add_column(column, justify="right")
    for i, size in enumerate(cascade.parsed):
        stage = chosen.stages[size]
        table.add_row(
            f"{size} px",
            f"{100 * cascade.thresholds[i]:.1f} % confidence" if i < len(cascade.thresholds) else "always",
            f"{100 * result.shares[i]:.1f} %",
            f"{1000 * stage.seconds:.2f}",
            f"{100 * (stage.logits.argmax(1) == chosen.target).double().mean():.1f} %",
        )
    return table


def result_sentence(chosen: ChosenCascade) -> str:
    """The cascade against its largest size alone, on the images that did not choose it."""
    cascade, result = chosen.cascade, chosen.result
    top1, alone = (100 * right / result.n for right in (result.right, result.right_alone))
    return (
        f"on {result.n} images that did not choose it: top-1 {top1:.2f} % against {alone:.2f} % of "
        f"{cascade.sizes[-1]} px alone ({result.gained} gained, {result.lost} lost), at "
        f"{result.seconds_alone / result.seconds:.2f} times its images/s"
    )
