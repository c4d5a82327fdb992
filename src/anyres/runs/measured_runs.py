"""Runs as they go into a comparison: what their curves recorded, or, where they have none, measured now."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyres.config import Damaged, UserError
from anyres.data.cache import DecodedImages
from anyres.evaluation.curve_file import read_csv
from anyres.evaluation.evaluator import ImageScores
from anyres.evaluation.measured import MEASURED
from anyres.evaluation.scores_file import SCORES, About, KeptScores, kept_form, read_scores
from anyres.flow import Metric, Size, SizeResult
from anyres.models.weights import written_digest
from anyres.recipe import Recipe, read_recipe
from anyres.runs.inputs import evaluated_sizes
from anyres.runs.opened import FACTS, RECIPE, WEIGHTS, DataSpec, TrainedModel, open_run, read_facts, with_costs
from anyres.runs.report import kept_scores
from anyres.runs.stderr import doing
from anyres.tasks import known_metrics

log = logging.getLogger(__name__)
CURVE = "curve.csv"


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """A run under the ``name`` it has in a comparison: its results and scores per image by size, and what these are
    ``about``.

    ``recipe``: None where the folder holds a curve of weights alone. ``facts``: of its ``run.json``. ``now``: measured
    for this comparison, in one window with the others that were.
    """

    name: str
    folder: Path
    recipe: Recipe | None
    facts: Mapping[str, Any]
    results: Mapping[Size, SizeResult]
    scores: Mapping[Size, ImageScores]
    about: About
    now: bool

    @property
    def metric(self) -> Metric:
        """The headline."""
        return next(iter(self.results.values())).headline


def runs_named(folders: Sequence[str | Path]) -> dict[str, Path]:
    """The folders by what they are called in a comparison: the end of each path that tells it from the others.

    Raises UserError for less than two, and for one that is given twice.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100  # links stay as they are called
    if len(paths) < 2:
        raise UserError("a comparison wants two runs or more: give the folders of both")
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise UserError(f"{folders[i]} is given twice: a run is not compared with itself")
    parts = 1
    while len(names := ["/".join(path.parts[-parts:]) for path in paths]) > len(set(names)):
        parts += 1
    return dict(zip(names, map(Path, folders), strict=True))


def recorded(name: str, folder: Path, sizes: Sequence[Size]) -> MeasuredRun | None:
    """What a run's curve recorded, at ``sizes`` (all if none); None where it has to be measured, and a log line why."""
    try:
        kept = read_scores(folder / SCORES)
    except Damaged as error:
        log.warning("%s: it is measured again", error)
        return None
    if kept is None or not (folder / CURVE).is_file():
        if (folder / CURVE).is_file() and not (folder / RECIPE).is_file():
            raise UserError(
                f"{folder} has a curve without {SCORES}, of an earlier version or too large to keep: give the run "
                "itself"
            )
        return None
    known = MEASURED
    points = read_csv(folder / CURVE, known)
    if points and points[0].headline.key not in known:  # of a task of someone else's
        points = read_csv(folder / CURVE, known_metrics())
    results = {point.size: replace(point, model=name) for point in points}
    wanted = tuple(sizes or results)
    if not results or results.keys() != kept.by_size.keys() or not set(wanted) <= results.keys():
        return None
    if (folder / WEIGHTS).is_file() and written_digest(folder / WEIGHTS) != kept.about.weights:
        log.info("%s has other weights than those of its curve: it is measured again", folder)
        return None
    recipe = read_recipe(folder / RECIPE) if (folder / RECIPE).is_file() else None
    facts = read_facts(folder / FACTS) if (folder / FACTS).is_file() else {}
    scores = {size: kept.by_size[size] for size in wanted}
    return MeasuredRun(name, folder, recipe, facts, {s: results[s] for s in wanted}, scores, kept.about, False)


def measured_now(folders: Mapping[str, Path], sizes: Sequence[Size], where: DataSpec) -> dict[str, MeasuredRun]:
    """Runs measured at ``sizes`` (none: those of their recipes together), their costs timed in turn where they run
    alike. Raises UserError where a folder holds no finished run, or images and sizes do not suit it."""
    opened: dict[str, TrainedModel] = {}
    for name, folder in folders.items():
        with doing(f"opening {folder}"):
            opened[name] = open_run(folder)
    every = tuple(dict.fromkeys(size for model in opened.values() for size in evaluated_sizes(model.recipe)))
    wanted = tuple(sizes) or every
    images: dict[str, DecodedImages] = {}
    for name, model in opened.items():
        like = next((other for other in images if _sees_the_same(model, opened[other])), None)
        images[name] = images[like] if like else model.images(where)
    qualities = {name: model.quality(images[name], wanted, name) for name, model in opened.items()}
    found: dict[str, MeasuredRun] = {}
    groups: dict[Any, list[str]] = {}
    for name, model in opened.items():
        groups.setdefault((model.autocast, images[name].channels), []).append(name)
    for (_, channels), names in groups.items():
        measured = with_costs({n: opened[n] for n in names}, {n: qualities[n] for n in names}, channels)
        for name in names:
            model, kept = opened[name], kept_scores(opened[name], images[name], measured[name])
            results = {one.result.size: one.result for one in measured[name]}
            scores = _kept_forms(kept)
            found[name] = MeasuredRun(name, folders[name], model.recipe, model.facts, results, scores, kept.about, True)
    return found


def _sees_the_same(model: TrainedModel, other: TrainedModel) -> bool:
    """Whether the images of one, as they are read and labelled, are those of the other."""
    return (model.recipe.data, model.task.name, model.names, model.learnt_from, model.recipe.clip) == (
        other.recipe.data,
        other.task.name,
        other.names,
        other.learnt_from,
        other.recipe.clip,
    )


def _kept_forms(kept: KeptScores) -> dict[Size, ImageScores]:
    return {size: kept_form(scores) for size, scores in kept.by_size.items()}
