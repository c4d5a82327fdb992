"""``anyres probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import AsJson, Data, Model, Split, Weights
from anyres.config import UserError


@app.command()
def probe(
    model: Model,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    size: Annotated[
        str | None, typer.Option(help="224 or 320x192; the largest it was trained at if not given.")
    ] = None,
    knn: Annotated[bool, typer.Option("--knn", help="Only nearest neighbors.")] = False,
    linear: Annotated[bool, typer.Option("--linear", help="Only a linear classifier.")] = False,
    k: Annotated[str, typer.Option(help="Numbers of neighbors.")] = "10,20,100,200",
    epochs: Annotated[int, typer.Option(help="Of the linear classifier.")] = 100,
    lr: Annotated[float, typer.Option(help="Its learning rate, for a batch of 256 images.")] = 0.001,
    batch_size: Annotated[int, typer.Option(help="Its batch.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Its seed.")] = 0,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="A folder to keep the features in, and to take them from again.")
    ] = None,
    into: AsJson = None,
) -> None:
    """Say what a model's frozen features are worth: nearest neighbors and a linear classifier on any labelled images.

    Example: `anyres probe dino_vits16.224 --data imagenet --knn`
    """
    from anyres.cli.console import is_stdout, print_json, report_, stdout
    from anyres.evaluation.probe import ProbeConfig
    from anyres.evaluation.tables import probe_table
    from anyres.flow import Size
    from anyres.runs.inputs import describe_images
    from anyres.runs.opened import DataSpec, ModelSpec, open_model
    from anyres.runs.probe import ProbeOptions
    from anyres.runs.probe import probe as run
    from anyres.runs.stderr import log_sentences
    from anyres.storage import write_json

    if not all(part.strip().isdecimal() for part in k.split(",")):
        raise UserError(f"--k {k!r}: give numbers of neighbors, as 10,20")
    neighbors = tuple(int(part) for part in k.split(","))
    how = ProbeConfig(k=neighbors, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    wanted = Size.parse(size) if size else None
    trained = open_model(ModelSpec(model, weights))
    result = run(trained, DataSpec(data, split), wanted, ProbeOptions(knn, linear, how, keep))
    for images in (result.train, result.test):
        log_sentences((*images.source.notes, *describe_images(images, images.source.split)))
    if is_stdout(into):
        print_json(result.facts())
        return
    stdout().print(probe_table(result.found))
    report_(*result.summary())
    if into is not None:
        write_json(into, result.facts())
