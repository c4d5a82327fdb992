"""What a run tells people: sentences on the way, and at the end a table, ``curve.csv``, ``curve.png``, a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torchvision.transforms.v2.functional import to_pil_image

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.evaluation.confusion import confusion, write_tables
from anyres.evaluation.curve import Measured, plain, plot, write_csv
from anyres.evaluation.fingerprint import Fingerprint, fingerprint
from anyres.evaluation.metrics import Scores
from anyres.evaluation.multilabel import LabelScores, write_label_table
from anyres.evaluation.plots.heatmap import heat_map
from anyres.evaluation.probe import NEIGHBOURS
from anyres.evaluation.report import (
    Prediction,
    ReportPage,
    Sample,
    console_labels,
    console_mistakes,
    console_table,
    write_html,
)
from anyres.flow import Point, Size
from anyres.models.weights import save_weights
from anyres.recipe import Recipe
from anyres.runs.opened import RECIPE, WEIGHTS, Trained, crop_ratio, evaluated_sizes, seen_as
from anyres.training.state import State

MOST_NOTES = 100  # on a page


def messages(quiet: bool = False) -> Console:
    """Where sentences for people go: stderr, one line each however long, names of files as they are."""
    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)


def screen() -> Console:
    """Where results go: stdout, as wide as the terminal, and unfolded where a file or a program takes them."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def said_of(images: DecodedImages, part: str, most: int = 10) -> Iterator[str]:
    """What was done with the images that are not plain: a sentence for each of ``most``, then how many there are."""
    remarks = images.decode_warnings()
    yield from (f"{part} image {name}: {what}" for name, what in list(remarks.items())[:most])
    if len(remarks) > most:
        yield f"... {len(remarks)} such {part} images in all"


def publish(recipe: Recipe, run: Path, state: State, images: DecodedImages, held_out: DecodedImages) -> None:
    """Write what the run was for: its facts, and weights that know their classes."""
    progress, multi_label = state.progress, images.source.multi_label
    metric = "map" if multi_label else "top1"
    sources = (*images.source.notes, *held_out.source.notes)
    remarks = progress.unreadable | images.decode_warnings() | held_out.decode_warnings()
    facts = {
        "images": progress.images,
        "pixels": progress.pixels,
        "seconds": round(progress.seconds, 1),
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        **({f"best_{metric}": progress.best} if progress.best_step >= 0 else {"scored": False}),
        "notes": [*dict.fromkeys(sources), *(f"{name}: {what}" for name, what in remarks.items())],
    }
    (run / "run.json").write_text(json.dumps(facts, indent=1))
    classes = images.source.classes if recipe.objective.dino is None else ()
    about = {"model": recipe.model, "classes": classes, "mean": recipe.data.mean, "std": recipe.data.std}
    several = {"multi_label": True} if multi_label and classes else {}
    save_weights(state.evaluated, run / WEIGHTS, {"anyres": json.dumps(about | several)})


def report_on(
    trained: Trained, images: DecodedImages, sizes: Sequence[Size] | None = None, out: Path | None = None
) -> list[Measured]:
    """Measure a model at ``sizes`` (the recipe's if none) and write ``curve.csv``, ``curve.png`` and ``report.html``
    in ``out``, a run's own folder if not given, and ``evaluation`` in ``run.json``. Raises UserError as
    ``folder_for`` does."""
    recipe, folder = trained.recipe, folder_for(trained, out)
    measured = trained.measure(images, sizes or evaluated_sizes(recipe))
    points = [m.point for m in measured]
    neighbours = f" of the {NEIGHBOURS} nearest training images" if trained.by_neighbours else ""
    at = [Size(p.height, p.width) for p in points]
    trained_at = {trained.name: recipe.views.parsed} if trained.folder else {}
    write_csv(points, folder / "curve.csv")
    plot(points, folder / "curve.png", train_sizes=trained_at)
    remarks = [f"{name}: {what}" for name, what in images.decode_warnings().items()]
    size, at_best = best_of(measured)
    classes, metric = images.source.classes, "mAP" if trained.multi_label else "Top-1 accuracy"
    notes = list(dict.fromkeys((*trained.facts.get("notes", ()), *images.source.notes, *remarks)))
    if len(notes) > MOST_NOTES:
        notes[MOST_NOTES:] = [f"... {len(notes)} such notes in all: run.json has those of training"]
    page = ReportPage(
        title=f"{trained.name} on {images.source.name}",
        claim=f"{metric}{neighbours} on {points[0].n} images of the {images.source.split} split at every size "
        "measured.",
        points=points,
        samples=samples_of(images, [(trained.name, trained, measured)], 12),
        notes=[*compared(trained, images, points), *notes],
        facts=[*facts_of(trained), ("decoder and resize", str(pixels_of(trained, at)))],
        train_sizes=trained_at,
        mistakes=(size, confusion(at_best, classes)) if isinstance(at_best, Scores) else None,
        labels=(size, at_best.worst(classes, 8)) if isinstance(at_best, LabelScores) else None,
    )
    write_html(folder / "report.html", page)
    write_json(trained.facts | {"evaluation": evaluation(trained, images, measured)}, folder / "run.json")
    show(trained, images, measured)
    return measured


def folder_for(trained: Trained, out: Path | None) -> Path:
    """Where results of a model go. Raises UserError when nobody said, or it is the folder of another run."""
    folder = out or trained.folder
    if folder is None:
        raise UserError(f"{trained.name} has no run folder: give --out a folder for curve.csv and report.html")
    own = trained.folder is not None and folder.resolve() == trained.folder.resolve()
    if not own and (folder / RECIPE).exists():
        raise UserError(f"{folder} is the run folder of something else: choose another --out")
    return folder


def best_of(measured: Sequence[Measured]) -> tuple[Size, Scores | LabelScores]:
    """The size with the best top-1 or mAP, and the scores there."""
    point, scores = max(measured, key=lambda one: one.point.top1)
    return Size(point.height, point.width), scores


def write_mistakes(trained: Trained, images: DecodedImages, measured: Sequence[Measured], out: Path) -> list[Path]:
    """Write ``per_class.csv``, ``confusion.csv`` and, for few classes, ``confusion_SIZE.png``; of a multi-label set,
    whose images are not taken for one class, the first alone; returns them."""
    classes, confusions, labels = images.source.classes, {}, {}
    for point, scores in measured:
        if isinstance(scores, LabelScores):
            labels[Size(point.height, point.width)] = scores
        else:
            confusions[Size(point.height, point.width)] = confusion(scores, classes)
    if labels:
        return [write_label_table(labels, classes, out)]
    written = write_tables(confusions, out)
    for size, one in confusions.items():
        if picture := heat_map(one, f"{trained.name} on {Path(images.source.name).name} at {size} px"):
            path = out / f"confusion_{size}.png"
            path.write_bytes(picture)
            written.append(path)
    return written


def show(trained: Trained, images: DecodedImages, measured: Sequence[Measured]) -> None:
    """Print what was measured, the difference to what is claimed, and what has to be equal to compare it."""
    out, points = screen(), [m.point for m in measured]
    size, scores = best_of(measured)
    classes = images.source.classes
    if isinstance(scores, LabelScores):
        told = console_labels(scores, classes, size)
    else:
        told = console_mistakes(confusion(scores, classes), size)
    out.print(console_table(points))
    for sentence in (
        *told,
        *compared(trained, images, points),
        f"images are seen so: {seen_as(trained.recipe)}",
        f"fingerprint: {pixels_of(trained, [Size(p.height, p.width) for p in points])}",
    ):
        out.print(sentence, markup=False, soft_wrap=True)


def samples_of(
    images: DecodedImages, scored: Sequence[tuple[str, Trained, Sequence[Measured]]], count: int
) -> list[Sample]:
    """``count`` images spread evenly over the set, each with what every model made of it at every size."""
    classes, samples = images.source.classes, []
    order = scored[0][2][0].scores.index
    for place in range(0, len(order), max(1, len(order) // count))[:count]:
        record = images.source.records[order[place]]
        predictions = [
            Prediction(
                name,
                Size(point.height, point.width),
                *_answer(scores, place, classes),
            )
            for name, _, measured in scored
            for point, scores in measured
        ]
        picture = to_pil_image(images[int(order[place])].image)
        truth = joined(images.source.labels(int(order[place])))
        samples.append(Sample(record.name, picture, truth, predictions))
    return samples


def _answer(scores: Scores | LabelScores, place: int, classes: Sequence[str]) -> tuple[str, float]:
    """What an image was taken for, and how surely."""
    if isinstance(scores, Scores):
        return classes[scores.predicted[place]], float(scores.confidence[place])
    return joined([classes[c] for c in scores.predicted[place].nonzero()[0]]), scores.sure(place)


def joined(labels: Sequence[str]) -> str:
    """Labels for people."""
    return ", ".join(labels) or "nothing"


def facts_of(trained: Trained) -> list[tuple[str, str]]:
    """Name and value of what matters about a training run, or about weights, for people."""
    recipe, facts = trained.recipe, trained.facts
    training = (
        []
        if trained.folder is None
        else [
            ("views", ", ".join(map(str, recipe.views.sizes)) + " px"),
            ("labels", f"not used; scored by the {NEIGHBOURS} nearest training images")
            if trained.by_neighbours
            else ("consistency", f"{recipe.objective.consistency} on {recipe.objective.target}"),
            ("epochs", str(recipe.train.epochs)),
            ("seed", str(recipe.train.seed)),
            ("pixels processed", f"{facts['pixels'] / 1e9:.2f} G"),
            ("seconds of training", f"{facts['seconds']:.0f}"),
        ]
    )
    return [
        ("model", trained.name),
        *(training or [("weights", trained.weights)]),
        ("images are seen", seen_as(recipe)),
        ("device", f"{trained.device.type}, {trained.autocast or torch.float32}".replace("torch.", "")),
        ("torch", torch.__version__),
    ]


def expected(recipe: Recipe, points: Sequence[Point]) -> list[str]:
    """The difference to the recipe's claim, one sentence for each size that is both claimed and measured."""
    sentences = []
    for point in points:
        size = str(Size(point.height, point.width))
        if point.metric == "top1" and size in recipe.claim.top1:
            claim = recipe.claim.top1[size]
            inside = 100 * point.top1_low <= claim <= 100 * point.top1_high
            sentences.append(
                f"claimed at {size} px: {claim:.2f} % ({recipe.claim.source}); measured {100 * point.top1:.2f} %, "
                f"a difference of {100 * point.top1 - claim:+.2f}; the 95 % interval {100 * point.top1_low:.2f} to "
                f"{100 * point.top1_high:.2f} {'holds' if inside else 'does not hold'} the claim"
            )
    if recipe.claim.top1 and points[0].metric != "top1":
        sentences = [
            f"claimed as top-1 ({recipe.claim.source}), measured as {points[0].named.name}: nothing to compare"
        ]
    if recipe.claim.top1 and not sentences:
        sentences = [f"claimed only at {', '.join(recipe.claim.top1)} px ({recipe.claim.source}): nothing to compare"]
    return sentences


def compared(trained: Trained, images: DecodedImages, points: Sequence[Point]) -> list[str]:
    """``expected``, and a warning where the images measured are plainly not those of the claim."""
    sentences = expected(trained.recipe, points)
    there, known = len(images.source.present), len(trained.names)
    if sentences and there < known:
        sentences.append(f"the claim is for {known} classes, here are images of {there}: not the same task")
    return sentences


def pixels_of(trained: Trained, sizes: Sequence[Size]) -> Fingerprint:
    """The fingerprint of how this machine shows images to the model."""
    recipe = trained.recipe
    return fingerprint(sizes, crop_ratio(recipe), recipe.evaluate.warp, recipe.data.cache_side)


def evaluation(trained: Trained, images: DecodedImages, measured: Sequence[Measured]) -> dict[str, Any]:
    """All that is needed to compare this measurement with another, as plain values for JSON."""
    recipe, source, points = trained.recipe, images.source, [m.point for m in measured]
    sizes = [Size(p.height, p.width) for p in points]
    rows = []
    for size, point in zip(map(str, sizes), points, strict=True):
        claim = recipe.claim.top1.get(size) if point.metric == "top1" else None
        claimed = {} if claim is None else {"claim": claim, "difference": round(100 * point.top1 - claim, 4)}
        rows.append({"size": size, **plain(point), **claimed})  # the claim in percent, the difference in points
    return {
        "model": trained.name,
        "weights": trained.weights,
        "data": source.name,
        "split": source.split,
        "images": len(images),
        "classes": len(source.present),
        "of_classes": len(trained.names or source.classes),
        "claim_source": recipe.claim.source,
        "seen": {
            "short_side_at_most": recipe.data.cache_side,
            "crop": None if recipe.evaluate.warp else crop_ratio(recipe),
            "warp": recipe.evaluate.warp,
            "mean": list(recipe.data.mean),
            "std": list(recipe.data.std),
        },
        "device": trained.device.type,
        "dtype": str(trained.autocast or torch.float32).removeprefix("torch."),
        "fingerprint": asdict(pixels_of(trained, sizes)),
        "points": rows,
        "notes": [*source.notes, *(f"{name}: {what}" for name, what in images.decode_warnings().items())],
    }


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write plain values, replacing ``path`` at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
