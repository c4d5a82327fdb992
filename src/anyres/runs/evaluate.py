"""Score a model at some sizes; draw its curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anyres.flow import Size, parse_sizes
from anyres.runs.bounds import check_sizes_fit
from anyres.runs.inputs import describe_images, evaluated_sizes
from anyres.runs.opened import DataSpec, Model, TrainedModel, open_model
from anyres.runs.report import Evaluation, folder_for, report_on
from anyres.runs.stderr import log_sentences, show_log

Sizes = str | int | Size | Sequence[str | int | Size]


def evaluate(
    model: Model, *, data: str | Path | None = None, split: str | None = None, sizes: Sizes = ()
) -> Evaluation:
    """Measure quality and cost of a model at some image sizes.

    ``model``: see ``Model``. ``data``, ``split``: the images (the recipe's own held-out ones). ``sizes``: sides in
    pixels, ``"320x192"`` (height x width) or ``"64:320:32"``; the recipe's if none is given.

    Returns an Evaluation: ``.sizes`` has a SizeResult for each size, metrics as shares in [0, 1] with 95 % intervals,
    latency in milliseconds; ``.rows()`` the same as dictionaries. Raises UserError where model, images and sizes do not
    go together.
    """
    show_log()
    trained = open_model(model)
    wanted = parse(sizes) or evaluated_sizes(trained.recipe)
    _check(trained, wanted)
    images = trained.images(DataSpec(str(data) if data is not None else None, split))
    return Evaluation(trained, images, tuple(trained.measure(images, wanted)))


def curve(
    model: Model,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    sizes: Sizes = ("64:320:32",),
    out: str | Path | None = None,
) -> Evaluation:
    """The same as ``evaluate``, and write ``curve.csv``, ``curve.png`` and ``report.html`` in ``out``, or in the run
    folder of ``model``. Raises UserError, also where there is no such folder or it is another run's."""
    show_log()
    trained = open_model(model)
    folder = folder_for(trained, Path(out) if out is not None else None)
    wanted = parse(sizes)
    _check(trained, wanted)
    return report_on(trained, trained.images(DataSpec(str(data) if data is not None else None, split)), wanted, folder)


def _check(trained: TrainedModel, sizes: Sequence[Size]) -> None:
    """Raises UserError for a size that the model or the machine cannot take."""
    trained.model.check_sizes(sizes)
    check_sizes_fit(sizes, trained.recipe, trained.recipe.evaluate.batch_size)


def parse(sizes: Sizes) -> tuple[Size, ...]:
    """Sizes as numbers, one as a list of one; none for none. Raises UserError."""
    sizes = [sizes] if isinstance(sizes, str | int | Size) else sizes
    texts = [f"{size.height}x{size.width}" if isinstance(size, Size) else str(size) for size in sizes]
    return parse_sizes(texts) if texts else ()


def log_images(evaluation: Evaluation) -> None:
    """Log what had to be done to read the images that were scored."""
    images = evaluation.images
    log_sentences((*images.source.notes, *describe_images(images, images.source.split)))
