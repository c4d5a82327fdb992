"""``anyres push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import RunFolder


@app.command()
def push(
    run: RunFolder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="On the hub: owner/name, or a name of your own.")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is for your eyes alone.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="What the card names, such as apache-2.0; none if not given.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="The hub's id of the images it was scored on: owner/name.")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--with", help="A file of `anyres export`, sent with its certificate.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Write there what would be sent, and send nothing.")
    ] = None,
) -> None:
    """Send a run to the Hugging Face hub: weights, recipe, curve, and a card that shows them.

    `hf:NAME` then stands wherever a run does. Where timm knows the model, it reads the repository by itself.

    Example: `anyres push runs/first someone/groceries --private`
    """
    from anyres.cli.console import report_, suggest
    from anyres.runs.hub import PushOptions
    from anyres.runs.hub import push as send

    found = send(run, name, PushOptions(private, licence, dataset, tuple(files or ())), folder)
    what = "written to" if folder else "sent to"
    reads = "timm reads it, too" if found.in_timm else "timm has no such model: anyres reads it"
    report_(f"{len(found.files)} files {what} {found.address}; {reads}")
    if folder is None:
        suggest(f"anyres predict hf:{found.name} photo.jpg")
