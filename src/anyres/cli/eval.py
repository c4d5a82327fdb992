"""``anyres eval``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import AsJson, Classes, Data, Model, Sizes, Split, Weights

log = logging.getLogger(__name__)


@app.command("eval")
def evaluate(
    model: Model,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    sizes: Sizes = None,
    classes: Classes = None,
    into: AsJson = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for per_class.csv, confusion.csv and its pictures.")
    ] = None,
) -> None:
    """Score a trained run, or any model with weights, at its own sizes or at the sizes given, against its claim.

    Example: `anyres eval runs/first --sizes 64,128 --split test`

    Published weights: `anyres eval deit3_small.384 --data imagenet --sizes 224,384`
    """
    from anyres.cli.console import is_stdout, print_json
    from anyres.cli.results import print_evaluation
    from anyres.runs import evaluate as runs
    from anyres.runs.opened import ModelSpec
    from anyres.runs.report import write_mistakes
    from anyres.storage import write_json

    wanted = runs.parse(sizes or ())
    evaluation = runs.evaluate(ModelSpec(model, weights, classes), data=data, split=split, sizes=wanted)
    runs.log_images(evaluation)
    if is_stdout(into):
        print_json(evaluation.facts())
    else:
        print_evaluation(evaluation)
    written = write_mistakes(evaluation, out) if out else []
    if into is not None and not is_stdout(into):
        write_json(into, evaluation.facts())
        written.append(into)
    if written:
        log.info("written: %s", ", ".join(map(str, written)))
