"""``anyres look``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import Classes, Model, Weights
from anyres.config import UserError

NAMED = 3  # unreadable files that the last line names


@app.command()
def look(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Files, folders (all images below), patterns such as 'a/**/*.png'."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page look.html and the drawings.")],
    weights: Weights = None,
    classes: Classes = None,
    size: Annotated[str | None, typer.Option(help="224 or 320x192; the recipe's largest if not given.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="attention, cam, gradients or occlusion; attention if not given, cam where the family has none."
        ),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="The class that is explained, by name or index; else the likeliest.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Counted from 0, negative from the end; else the last.")
    ] = None,
    share: Annotated[float, typer.Option("--share", help="Of a map's mass that its mask holds.")] = 0.6,
) -> None:
    """Draw what a model looks at: attention of its last block, or by gradients what speaks for a class.

    Attention is that of the class token for each head, of ResT's EMSA, of PatchConvNet's pooling. `cam`, `gradients`
    and `occlusion` are for every model (`pip install 'anyres[maps]'`). The page and PNGs show each map over the image,
    and the part of the image that holds most of it.

    Example: `anyres look runs/first photos --size 96 --out maps`
    """
    from rich import get_console
    from rich.progress import track

    from anyres.cli.console import report_
    from anyres.data.decode import Unreadable
    from anyres.data.wanted_files import wanted_files
    from anyres.flow import Size
    from anyres.runs.look import PAGE, LookOptions, describe, look_at_files
    from anyres.runs.opened import ModelSpec, open_model
    from anyres.runs.stderr import log_sentences

    options = LookOptions(Size.parse(size) if size else None, method, class_name, layer)
    paths, notes = wanted_files(images)
    trained = open_model(ModelSpec(model, weights, classes))
    log_sentences(notes)
    shown = track(paths, "images", len(paths), transient=True, disable=not get_console().is_terminal)
    found = look_at_files(trained, shown, options, out, share)
    report_(*(f"{path}: {describe(seen)}" for path, seen in found if not isinstance(seen, Unreadable)))
    report_(f"page and drawings are in {out / PAGE}")
    broken = [f"{path} is unreadable: {seen.reason}" for path, seen in found if isinstance(seen, Unreadable)]
    if broken:
        more = f"; {len(broken)} of {len(found)} images in all" if len(broken) > NAMED else ""
        raise UserError(f"{'; '.join(broken[:NAMED])}{more}")
