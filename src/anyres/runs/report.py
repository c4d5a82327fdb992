"""What a run leaves for people and programs: weights that know their classes, a table, a picture, a page."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.evaluation.curve import EvalResult
from anyres.evaluation.curve_file import write_csv
from anyres.evaluation.fingerprint import Fingerprint, fingerprint
from anyres.evaluation.page import FactGroup, ReportPage
from anyres.evaluation.scores_file import SCORES, About, KeptScores, images_digest, write_scores
from anyres.flow import Size, SizeResult
from anyres.models.fetch import is_remote
from anyres.models.weights import save_weights, written_digest
from anyres.recipe import Recipe
from anyres.runs.inputs import crop_ratio, describe_preprocessing, evaluated_sizes, interpolation_of, shows_whole
from anyres.runs.kept import LAST, choose, kept_in
from anyres.runs.opened import FACTS, RECIPE, WEIGHTS, TrainedModel
from anyres.runs.samples import best_of, samples_of
from anyres.runs.stderr import doing
from anyres.runs.training_record import charts_of, sheet_of
from anyres.storage import remove_drafts, write_bytes, write_json
from anyres.tasks import Shown, Task
from anyres.training.state import State, ended_by

MOST_NOTES = 100  # on a page
VERSIONS = {"average": "the moving average", "raw": "the raw weights"}
log = logging.getLogger(__name__)


def finish(recipe: Recipe, task: Task, run: Path, state: State, images: tuple[DecodedImages, DecodedImages]) -> None:
    """Write what the run was for: its facts, and weights that know their task and classes."""
    kept, weights = choose(recipe, run, state, len(images[0]))
    progress, sources = state.progress, [note for opened in images for note in opened.source.notes]
    found = progress.unreadable | images[0].decode_warnings() | images[1].decode_warnings()
    best = {f"best_{task.metrics[0].key}": progress.best} if progress.best_step >= 0 else {}
    if not task.can_score(images[0].source):
        best = {"scored": False}
    facts = {
        "images": progress.images,
        "pixels": progress.pixels,
        "seconds": round(progress.seconds, 1),
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        **best,
        "scores": progress.scores,
        "kept": asdict(kept),
        "ended": ended_by(progress, recipe.train) if kept.last_epoch < recipe.train.epochs else "",
        "notes": [*dict.fromkeys(sources), *(f"{name}: {what}" for name, what in found.items())],
    }
    write_json(run / FACTS, facts)
    about = {"model": recipe.model, "mean": recipe.data.mean, "std": recipe.data.std, **task.about()}
    said = {"anyres": json.dumps(about)}
    if kept.step == progress.step:
        (run / LAST).unlink(missing_ok=True)
    else:
        save_weights(state.evaluated, run / LAST, said)
    save_weights(weights, run / WEIGHTS, said)
    also = "" if kept.step == progress.step else f"; {LAST} holds the last ones"
    log.info("%s holds the weights %s%s", WEIGHTS, kept.sentence(task.metrics[0]), also)


@dataclass(frozen=True)
class Evaluation:
    """A model measured at some sizes: ``results`` in their order, and the ``images`` they are of."""

    model: TrainedModel
    images: DecodedImages
    results: tuple[EvalResult, ...]

    @property
    def sizes(self) -> tuple[SizeResult, ...]:
        """What goes on the curve."""
        return tuple(found.result for found in self.results)

    @property
    def task(self) -> Task:
        """The model's task, naming the classes of these images."""
        task: Task = self.model.task.naming(self.images.source)
        return task

    @property
    def best(self) -> EvalResult:
        """At the size with the best headline metric."""
        return best_of(self.results)

    def rows(self) -> list[dict[str, str | int | float | bool]]:
        """One dictionary of plain values per size, with the columns of ``curve.csv``."""
        return [result.row() for result in self.sizes]

    def facts(self) -> dict[str, Any]:
        """All that is needed to compare this measurement with another, as plain values for JSON."""
        return evaluation_facts(self)

    def summary(self) -> list[str]:
        """Below the table, for people: what is wrong most often, the claim, and what has to be equal to compare."""
        best, measured = self.best, [result.size for result in self.sizes]
        return [
            *self.task.summary(best.scores, best.result.size),
            *compared(self),
            f"preprocessing: {describe_preprocessing(self.model.recipe, measured)}",
            f"fingerprint: {pixels_of(self.model, measured)}",
            *versions_of(self.model),
            *kept_weights(self.model),
            *cautions_for(self.model, self.images),
        ]

    def __repr__(self) -> str:
        lines = [f"{result.size}: {result.headline.text(result.best.value)}" for result in self.sizes]
        return f"Evaluation({self.model.name} on {self.images.source.name}; {', '.join(lines)})"


def report_on(
    trained: TrainedModel, images: DecodedImages, sizes: Sequence[Size] | None = None, out: Path | None = None
) -> Evaluation:
    """Measure a model at ``sizes`` (the recipe's if none) and write ``curve.csv``, ``curve.png`` and ``report.html``
    in ``out``, a run's own folder if not given, and ``evaluation`` in ``run.json``. Raises UserError as
    ``folder_for`` does."""
    folder = folder_for(trained, out)
    measured = tuple(trained.measure(images, sizes or evaluated_sizes(trained.recipe)))
    evaluation = Evaluation(trained, images, measured)
    with doing("writing curve and report"):
        write_report(evaluation, folder)
    return evaluation


def write_report(evaluation: Evaluation, folder: Path) -> None:
    """Write the curve as table and picture, the page, and the facts."""
    from anyres.evaluation.plots.curve import plot
    from anyres.evaluation.report import write_html

    trained, images, results = evaluation.model, evaluation.images, evaluation.sizes
    best, task, metric = evaluation.best, evaluation.task, results[0].headline
    trained_at = {trained.name: trained.recipe.views.parsed} if trained.folder else {}
    record(trained, images, evaluation.results, folder)
    plot(results, folder / "curve.png", train_sizes=trained_at)
    curves = task.curve_sections(results)
    for section in curves:
        if section.pictures:
            write_bytes(folder / f"curve_{section.anchor}.png", section.pictures[0])
    warnings = [f"{name}: {what}" for name, what in images.decode_warnings().items()]
    notes = list(dict.fromkeys((*trained.facts.get("notes", ()), *images.source.notes, *warnings)))
    if len(notes) > MOST_NOTES:
        notes[MOST_NOTES:] = [f"... {len(notes)} such notes in all: run.json has those of training"]
    name = "Top-1 accuracy" if metric.key == "top1" else metric.name
    samples, how_chosen = samples_of(images, [(trained.name, trained, evaluation.results)])
    page = ReportPage(
        title=f"{trained.name} on {images.source.name}",
        claim=f"{name}{task.scored_by()} on {results[0].n} images of the {images.source.split} split at every size "
        "measured.",
        cautions=cautions_for(trained, images),
        points=results,
        samples=samples,
        samples_lead=how_chosen,
        notes=[*compared(evaluation), *versions_of(trained), *notes],
        facts=facts_of(trained, str(pixels_of(trained, [r.size for r in results]))),
        train_sizes=trained_at,
        sections=[
            *curves,
            *task.sections(best.scores, best.result.size, Shown(images.source, lambda i: images[i].image)),
        ],
        charts=charts_of(trained),
        sheet=sheet_of(trained),
        commands=commands_after(trained, best.result.size),
    )
    write_html(folder / "report.html", page)
    write_json(folder / FACTS, trained.facts | {"evaluation": evaluation.facts()})


def record(trained: TrainedModel, images: DecodedImages, results: Sequence[EvalResult], folder: Path) -> None:
    """Write what other verbs read of a measurement: ``curve.csv``, and what was said of each image."""
    write_csv([found.result for found in results], folder / "curve.csv")
    write_scores(kept_scores(trained, images, results), folder / SCORES)


def kept_scores(trained: TrainedModel, images: DecodedImages, results: Sequence[EvalResult]) -> KeptScores:
    """What was said of each image at each size, with what decides whether another model was asked the same."""
    source = images.source
    about = About(
        trained.task.name,
        images_digest(source),
        tuple(trained.classes or source.classes),
        source.name,
        source.split,
        written_digest(trained.folder / WEIGHTS) if trained.folder else "",
    )
    return KeptScores(about, {found.result.size: found.scores for found in results})


def write_mistakes(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write the task's tables and pictures of what was right and wrong at each size; returns them."""
    by_size = {found.result.size: found.scores for found in evaluation.results}
    title = f"{evaluation.model.name} on {Path(evaluation.images.source.name).name}"
    return evaluation.task.write_tables(by_size, title, out)


def folder_for(trained: TrainedModel, out: Path | None) -> Path:
    """Where results of a model go. Raises UserError when nobody said, or it is the folder of another run."""
    folder = out or trained.folder
    if folder is None:
        raise UserError(f"{trained.name} has no run folder: give --out a folder for curve.csv and report.html")
    if out is None and trained.folder is not None and is_remote(trained.weights):
        raise UserError(f"{trained.weights} is a run on the hub: give --out a folder for curve.csv and report.html")
    own = trained.folder is not None and folder.resolve() == trained.folder.resolve()
    if not own and (folder / RECIPE).exists():
        raise UserError(f"{folder} is the run folder of something else: choose another --out")
    if folder.is_dir():
        remove_drafts(folder)
    return folder


def facts_of(trained: TrainedModel, decoder: str = "") -> list[FactGroup]:
    """Name and value of what matters about a training run, or about weights, for people; ``decoder``: the fingerprint
    of how images are read and resized."""
    recipe, facts = trained.recipe, trained.facts
    measured = [
        ("preprocessing", describe_preprocessing(recipe)),
        ("device", f"{trained.device.type}, {trained.autocast or torch.float32}".replace("torch.", "")),
        ("torch", torch.__version__),
        *([("decoder and resize", decoder)] if decoder else []),
    ]
    if trained.folder is None:
        return [
            FactGroup("Model", [("model", trained.name), ("weights", trained.weights)]),
            FactGroup("Here", measured),
        ]
    objective, kept = recipe.objective, kept_in(facts)
    about = [
        ("model", trained.name),
        ("task", trained.task.name),
        *([("weights kept", kept.sentence(trained.task.metrics[0]))] if kept else []),
        *([("started from", recipe.weights)] if recipe.weights else []),
    ]
    training = [
        ("views", ", ".join(map(str, recipe.views.sizes)) + " px"),
        ("objective", objective.chosen),
        ("labels", f"not used; scored by{trained.task.scored_by().removeprefix(' of')}")
        if trained.task.wanted == "optional"
        else ("consistency", f"{objective.consistency} on {objective.target}"),
        ("epochs", str(recipe.train.epochs)),
        ("learning rate", f"{recipe.optim.peak_lr(recipe.data.step_images):.3g}, {recipe.optim.schedule}"),
        ("batch", f"{recipe.data.step_images} images"),
        ("seed", str(recipe.train.seed)),
        *([("pixels processed", f"{facts['pixels'] / 1e9:.2f} G")] if "pixels" in facts else []),
        *([("seconds of training", f"{facts['seconds']:.0f}")] if "seconds" in facts else []),
    ]
    return [FactGroup("Model", about), FactGroup("Training", training), FactGroup("Measured here", measured)]


def compared(evaluation: Evaluation) -> list[str]:
    """The difference to the recipe's claim, and a warning where the images are plainly not those of the claim."""
    trained, images = evaluation.model, evaluation.images
    sentences = claim_differences(trained.recipe, evaluation.sizes)
    there, known = len(images.source.present), len(trained.names)
    if sentences and there < known:
        sentences.append(f"the claim is for {known} classes, here are images of {there}: not the same task")
    return sentences


def versions_of(trained: TrainedModel) -> list[str]:
    """How the raw weights and their moving average scored when these were kept, and which of them this model is."""
    kept = kept_in(trained.facts)
    scores: dict[str, dict[str, float]] = (kept.scores if kept else trained.facts.get("scores")) or {}
    if len(scores) < 2:
        return []
    published = next(iter(scores))
    metric = trained.task.metrics[0]
    told = ", ".join(f"{VERSIONS[name]} {metric.text(scores[name][metric.key])}" for name in sorted(scores))
    held = ", ".join(key.partition("/")[2] for key in scores[published] if "/" in key)
    when = f"after epoch {kept.epoch:g}" if kept and kept.step != kept.last else "at the end of training"
    return [f"scored {when}, at {held} px: {told}; measured here: {VERSIONS[published]}"]


def kept_weights(trained: TrainedModel) -> list[str]:
    """Which of a run's weights these are."""
    kept = kept_in(trained.facts)
    return [] if kept is None else [f"weights kept: those {kept.sentence(trained.task.metrics[0])}"]


def cautions_for(trained: TrainedModel, images: DecodedImages) -> list[str]:
    """A warning where the images measured here are those that chose the weights."""
    kept = kept_in(trained.facts)
    if kept is None or kept.rule == "last" or kept.scored < 2 or kept.chosen_by != images.source.fingerprint():
        return []
    return [
        f"these {len(images)} images chose the epoch, so what is measured on them is a little too high: "
        f"`anyres eval {trained.folder} --data OTHER`, or --split test where there is one, measures on other images"
    ]


def commands_after(trained: TrainedModel, best: Size) -> list[tuple[str, str]]:
    """What may come next for a run."""
    run = trained.folder
    if run is None:
        return []
    return [
        (f"anyres predict {run} photo.jpg", "names what is in your images"),
        (f"anyres curve {run} --sizes 64:320:32", "measures more sizes"),
        (f"anyres pick {run} --max-ms 10", "names the best size within 10 ms an image"),
        (f"anyres eval {run} --data root --sizes {best}", "scores other images"),
    ]


def claim_differences(recipe: Recipe, results: Sequence[SizeResult]) -> list[str]:
    """One sentence for each size that is both claimed and measured."""
    claimed = recipe.claim.top1
    if not claimed:
        return []
    if "top1" not in results[0].metrics:
        return [f"claimed as top-1 ({recipe.claim.source}), measured as {results[0].headline.name}: nothing to compare"]
    sentences = []
    for result in results:
        claim = claimed.get(str(result.size))
        if claim is not None:
            value, low, high = (100 * x for x in result.metrics["top1"])
            sentences.append(
                f"claimed at {result.size} px: {claim:.2f} % ({recipe.claim.source}); measured {value:.2f} %, "
                f"a difference of {value - claim:+.2f}; the 95 % interval {low:.2f} to {high:.2f} "
                f"{'holds' if low <= claim <= high else 'does not hold'} the claim"
            )
    return sentences or [f"claimed only at {', '.join(claimed)} px ({recipe.claim.source}): nothing to compare"]


def pixels_of(trained: TrainedModel, sizes: Sequence[Size]) -> Fingerprint:
    """The fingerprint of how this machine shows images to the model."""
    recipe = trained.recipe
    crop, short, how = crop_ratio(recipe), recipe.data.cache_side, interpolation_of(recipe)
    warped = {size: recipe.evaluate.warps(size) for size in sizes}
    alike = [[size for size in sizes if warped[size] == warp] for warp in dict.fromkeys(warped.values())]
    found = [fingerprint(some, crop, warped[some[0]], short, how, shows_whole(recipe)) for some in alike]
    pixels = {size: digits for one in found for size, digits in one.pixels.items()}
    return replace(found[0], pixels={str(size): pixels[str(size)] for size in sizes})


def evaluation_facts(evaluation: Evaluation) -> dict[str, Any]:
    """See ``Evaluation.facts``."""
    trained, images, results = evaluation.model, evaluation.images, evaluation.sizes
    recipe, source = trained.recipe, images.source
    warped = {recipe.evaluate.warps(result.size) for result in results}
    rows = []
    for result in results:
        row: dict[str, Any] = {"size": str(result.size), **result.row()}
        claim = recipe.claim.top1.get(str(result.size)) if "top1" in result.metrics else None
        if claim is not None:  # in percent, the difference in points
            row |= {"claim": claim, "difference": round(100 * result.metrics["top1"].value - claim, 4)}
        rows.append(row)
    return {
        "model": trained.name,
        "weights": trained.weights,
        "version": next(iter(trained.facts.get("scores") or {}), None),
        "task": trained.task.name,
        "data": source.name,
        "split": source.split,
        "images": len(images),
        "classes": len(source.present),
        "of_classes": len(trained.names or source.classes),
        "claim_source": recipe.claim.source,
        "seen": {
            "short_side_at_most": recipe.data.cache_side,
            "crop": None if warped == {True} or shows_whole(recipe) else crop_ratio(recipe),
            "warp": recipe.evaluate.warp if len(warped) > 1 else warped == {True},
            "mean": list(recipe.data.mean),
            "std": list(recipe.data.std),
        },
        "device": trained.device.type,
        "dtype": str(trained.autocast or torch.float32).removeprefix("torch."),
        "fingerprint": asdict(pixels_of(trained, [result.size for result in results])),
        "points": rows,
        "notes": [*source.notes, *(f"{name}: {what}" for name, what in images.decode_warnings().items())],
    }
