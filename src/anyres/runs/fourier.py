"""Spectra of a trained model's layers over a set of images, streamed, with their CSV and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import get_console
from rich.progress import track

from anyres.data.cache import DecodedImages
from anyres.data.sources import Source
from anyres.deploy.predictor import size_of
from anyres.flow import Size
from anyres.maps.fourier import Fourier, Spectrum
from anyres.maps.fourier_plot import fourier_png
from anyres.runs.bounds import check_sizes_fit
from anyres.runs.inputs import open_test_images, scored_batches
from anyres.runs.opened import DataSpec, Model, TrainedModel, open_model
from anyres.runs.stderr import show_log
from anyres.storage import write_bytes, write_rows
from anyres.tasks import task_of

HEAD = ("part", "layer", "module", "rows", "columns", "images", "frequency", "log_amplitude")


def fourier(
    model: Model,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    size: str | int | Size | None = None,
    images: int | None = None,
) -> list[Spectrum]:
    """Which frequencies each layer of a model keeps, over a set of images (ResTv2, section 4).

    ``model``: see ``Model``. ``data``, ``split``: the images (the recipe's own held-out ones). ``size``: a side in
    pixels or ``"320x192"`` (None: the largest it was trained at). ``images``: so many, the first ones (None: all).

    Returns a Spectrum for each layer and part of it: ``.frequencies`` in [0, 1], as shares of π, and ``.values``, the
    log amplitudes relative to the first. Raises UserError.
    """
    show_log()
    where = DataSpec(str(data) if data is not None else None, split)
    return spectra_of(open_model(model), where, size_of(size) if size is not None else None, images)[0]


def spectra_of(
    trained: TrainedModel, where: DataSpec = DataSpec(), size: Size | None = None, most: int | None = None
) -> tuple[list[Spectrum], DecodedImages]:
    """Spectra of every layer at ``size`` (None: the largest it was trained at), and the images.

    ``most``: so many images, the first (None: all). Labels are not asked for, unreadable images left out. Raises
    UserError.
    """
    model = trained.backbone
    size = size or trained.recipe.views.parsed[0]
    model.check_sizes([size])
    check_sizes_fit([size], trained.recipe, trained.recipe.evaluate.batch_size)

    def first(source: Source) -> Source:
        return source if most is None else replace(source, records=source.records[:most])

    images = open_test_images(trained.recipe, where.split, where.data, "optional", first)
    analysis = Fourier(model)
    batches = scored_batches(trained.recipe, task_of({}, "unlabelled"), images, size, trained.device)
    total = -(-len(images) // trained.recipe.evaluate.batch_size)
    for batch in track(batches, "spectra", total, transient=True, disable=not get_console().is_terminal):
        analysis.see(batch.views[0])
    return analysis.spectra(), images


def write_spectra(spectra: Sequence[Spectrum], out: Path, title: str) -> tuple[Path, Path]:
    """Write ``out/fourier.csv``, a row for each frequency of each layer, and ``out/fourier.png``; their paths."""
    rows = [
        (s.part, s.layer, s.module, *s.grid, s.images, f"{frequency:.6g}", f"{value:.6g}")
        for s in spectra
        for frequency, value in zip(s.frequencies, s.values, strict=True)
    ]
    table, picture = out / "fourier.csv", out / "fourier.png"
    write_rows(table, [HEAD, *rows])
    write_bytes(picture, fourier_png(spectra, title))
    return table, picture
