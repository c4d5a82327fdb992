"""Score a model at some sizes; draw its curve; choose the size that does the job."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from anyres.evaluation.curve import pick as pick_result
from anyres.evaluation.curve import read_csv
from anyres.flow import Size, SizeResult, parse_sizes
from anyres.runs.inputs import describe_images, evaluated_sizes
from anyres.runs.opened import DataSpec, ModelSpec, TrainedModel, load
from anyres.runs.report import Evaluation, folder_for, report_on
from anyres.tasks import known_metrics

log = logging.getLogger(__name__)
Model = str | Path | ModelSpec | TrainedModel
"""A run folder, the name of a model or of known weights, a ModelSpec with weights, or what ``load`` returned."""
Sizes = Sequence[str | int | Size]


def evaluate(model: Model, *, data: str | None = None, split: str | None = None, sizes: Sizes = ()) -> Evaluation:
    """Measure quality and cost of a model at some image sizes.

    ``model``: a run folder, the name of known weights (``deit3_small.384``), a ModelSpec with weights, or what ``load``
    returned. ``data``, ``split``: the images (the recipe's own held-out ones). ``sizes``: sides in
    pixels, ``"320x192"`` (height x width) or ``"64:320:32"``; the recipe's if none is given.

    Returns an Evaluation: ``.sizes`` has a SizeResult for each size, metrics as shares in [0, 1] with 95 % intervals,
    latency in milliseconds; ``.rows()`` the same as dictionaries. Raises UserError where model, images and sizes do not
    go together.
    """
    trained = open_model(model)
    wanted = parse(sizes) or evaluated_sizes(trained.recipe)
    images = trained.images(DataSpec(data, split))
    return Evaluation(trained, images, tuple(trained.measure(images, wanted)))


def curve(
    model: Model,
    *,
    data: str | None = None,
    split: str | None = None,
    sizes: Sizes = ("64:320:32",),
    out: str | Path | None = None,
) -> Evaluation:
    """The same as ``evaluate``, and write ``curve.csv``, ``curve.png`` and ``report.html`` in ``out``, or in the run
    folder of ``model``. Raises UserError, also where there is no such folder or it is another run's."""
    trained = open_model(model)
    folder = folder_for(trained, Path(out) if out is not None else None)
    return report_on(trained, trained.images(DataSpec(data, split)), parse(sizes), folder)


def pick(run: str | Path, bound: float | None = None, max_ms: float | None = None) -> SizeResult:
    """The size of a measured run that does the job, from the ``curve.csv`` in its folder.

    ``bound``: the least value of the headline metric (0.9 for 90 % top-1; of an error, the largest). ``max_ms``: the
    longest latency of one image, in milliseconds. With ``bound``, the cheapest size that meets all bounds; with
    ``max_ms`` alone, the best one within it.

    Returns the SizeResult. Raises UserError where no size meets the bounds, none is given, or there is no curve.
    """
    return pick_result(read_csv(Path(run) / "curve.csv", known_metrics()), bound, max_ms)


def open_model(model: Model) -> TrainedModel:
    """The model that is named. Raises UserError."""
    if isinstance(model, TrainedModel):
        return model
    if isinstance(model, ModelSpec):
        return load(model.what, model.weights, model.classes)
    return load(model)


def parse(sizes: Sizes) -> tuple[Size, ...]:
    """Sizes as numbers; none for none. Raises UserError."""
    texts = [f"{size.height}x{size.width}" if isinstance(size, Size) else str(size) for size in sizes]
    return parse_sizes(texts) if texts else ()


def log_images(evaluation: Evaluation) -> None:
    """Log what had to be done to read the images that were scored."""
    images = evaluation.images
    log_sentences((*images.source.notes, *describe_images(images, images.source.split)))


def log_sentences(sentences: Iterable[str]) -> None:
    """Log each by itself."""
    for sentence in sentences:
        log.info(sentence)
