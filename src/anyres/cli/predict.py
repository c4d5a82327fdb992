"""``anyres predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import BACKEND, Classes, HugePages, Model, Weights
from anyres.config import UserError


@app.command()
def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    weights: Weights = None,
    classes: Classes = None,
    size: Annotated[str | None, typer.Option(help="224 or 320x192; the recipe's largest if not given.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 3,
    backend: Annotated[str | None, typer.Option("--backend", help=BACKEND)] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Small first, larger where unsure, as `anyres cascade` chose.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of several labels: every one above this probability; 0.5 if not given."),
    ] = None,
    huge_pages: HugePages = False,
) -> None:
    """Print the likeliest classes of images; every likely label where the model gives several.

    Example: `anyres predict runs/first photo.jpg --size 96`
    """
    from rich.table import Table

    from anyres.cli.console import stdout
    from anyres.flow import Size
    from anyres.runs.opened import ModelSpec, open_model
    from anyres.runs.predict import PredictOptions, predict_files
    from anyres.tasks import Answer, AnswerOptions

    options = PredictOptions(Size.parse(size) if size else None, backend, cascade, huge_pages)
    trained = open_model(ModelSpec(model, weights, classes))
    answers: list[tuple[Path, Answer]] = []
    unreadable: list[str] = []
    for path, answer in predict_files(trained, images, options, AnswerOptions(top, threshold)):
        if isinstance(answer, Answer):
            answers.append((path, answer))
        else:
            unreadable.append(f"{answer.name} is unreadable: {answer.reason}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = dict.fromkeys(column for _, answer in answers for column in answer.cells)
    for column in ("image", *columns):
        table.add_column(column, overflow="fold")
    for path, answer in answers:
        table.add_row(str(path), *(answer.cells.get(column, "") for column in columns))
    if answers:
        stdout().print(table)
    if unreadable:
        raise UserError("; ".join(unreadable))
