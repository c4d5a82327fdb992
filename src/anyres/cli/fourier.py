"""``anyres fourier``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli.app import app
from anyres.cli.arguments import Data, Model, Split, Weights


@app.command()
def fourier(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Folder for fourier.csv and fourier.png.")],
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    size: Annotated[
        str | None, typer.Option(help="224 or 320x192; the largest it was trained at if not given.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="So many, the first ones; all if not given.")
    ] = None,
) -> None:
    """Say which frequencies each layer keeps: relative log amplitudes of its maps, as the ResTv2 paper draws them.

    Of every layer's features; and for plain ViTs, ResFormer and ResT of what attention gives and what is added to it.

    Example: `anyres fourier runs/first --size 96 --out spectra`
    """
    from anyres.cli.console import report_
    from anyres.flow import Size
    from anyres.runs.fourier import spectra_of, write_spectra
    from anyres.runs.inputs import describe_images
    from anyres.runs.opened import DataSpec, ModelSpec, open_model
    from anyres.runs.stderr import log_sentences

    wanted = Size.parse(size) if size else None
    trained = open_model(ModelSpec(model, weights))
    spectra, seen = spectra_of(trained, DataSpec(data, split), wanted, images)
    log_sentences((*seen.source.notes, *describe_images(seen, seen.source.split)))
    at = wanted or trained.recipe.views.parsed[0]
    title = f"{trained.name} at {at} px, {spectra[0].images} images"
    table, picture = write_spectra(spectra, out, title)
    for part in dict.fromkeys(spectrum.part for spectrum in spectra):
        own = [spectrum for spectrum in spectra if spectrum.part == part]
        report_(
            f"{part}: {len(own)} layers, at the highest frequency {own[0].values[-1]:+.2f} in the first and "
            f"{own[-1].values[-1]:+.2f} in the last"
        )
    report_(f"{title}: written to {table} and {picture}")
