"""What a run tells people: sentences on the way, and at the end a table, ``curve.csv``, ``curve.png``, a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torchvision.transforms.v2.functional import to_pil_image

from anyres.data.cache import DecodedImages
from anyres.evaluate.curve import Measured, plot, write_csv
from anyres.evaluate.report import Prediction, ReportPage, Sample, console_table, write_html
from anyres.flow import Point, Size
from anyres.models.weights import save_weights
from anyres.recipe import Recipe
from anyres.train.state import State
from anyres.trained import WEIGHTS, Trained, evaluated_sizes, seen_as

MOST_NOTES = 100  # on a page


def messages(quiet: bool = False) -> Console:
    """Where sentences for people go: stderr, one line each however long, names of files as they are."""
    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)


def screen() -> Console:
    """Where results go: stdout, as wide as the terminal, and unfolded where a file or a program takes them."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def said_of(images: DecodedImages, part: str, most: int = 10) -> Iterator[str]:
    """What was done with the images that are not plain: a sentence for each of ``most``, then how many there are."""
    remarks = images.remarks()
    yield from (f"{part} image {name}: {what}" for name, what in list(remarks.items())[:most])
    if len(remarks) > most:
        yield f"... {len(remarks)} such {part} images in all"


def publish(recipe: Recipe, run: Path, state: State, images: DecodedImages, held_out: DecodedImages) -> None:
    """Write what the run was for: its facts, and weights that know their classes."""
    progress = state.progress
    sources = (*images.source.notes, *held_out.source.notes)
    remarks = progress.unreadable | images.remarks() | held_out.remarks()
    facts = {
        "images": progress.images,
        "pixels": progress.pixels,
        "seconds": round(progress.seconds, 1),
        "steps": progress.step,
        "best_top1": progress.best,
        "notes": [*dict.fromkeys(sources), *(f"{name}: {what}" for name, what in remarks.items())],
    }
    (run / "run.json").write_text(json.dumps(facts, indent=1))
    about = {"model": recipe.model, "classes": images.source.classes, "mean": recipe.data.mean, "std": recipe.data.std}
    save_weights(state.evaluated, run / WEIGHTS, {"anyres": json.dumps(about)})


def report_on(
    trained: Trained, images: DecodedImages, sizes: Sequence[Size] | None = None, out: Path | None = None
) -> list[Measured]:
    """Measure a model at ``sizes`` (the recipe's if none) and write ``curve.csv``, ``curve.png`` and ``report.html``
    in ``out``, a run's own folder if not given. Raises ValueError where there is neither."""
    recipe, folder = trained.recipe, out or trained.folder
    if folder is None:
        raise ValueError(f"{trained.name} has no folder of its own")
    measured = trained.measure(images, sizes or evaluated_sizes(recipe))
    points = [m.point for m in measured]
    trained_at = {trained.name: recipe.views.parsed} if trained.folder else {}
    write_csv(points, folder / "curve.csv")
    plot(points, folder / "curve.png", train_sizes=trained_at)
    remarks = [f"{name}: {what}" for name, what in images.remarks().items()]
    notes = list(dict.fromkeys((*trained.facts.get("notes", ()), *images.source.notes, *remarks)))
    if len(notes) > MOST_NOTES:
        notes[MOST_NOTES:] = [f"... {len(notes)} such notes in all: run.json has those of training"]
    page = ReportPage(
        title=f"{trained.name} on {images.source.name}",
        claim=f"Top-1 accuracy on {points[0].n} images of the {images.source.split} split at every size measured.",
        points=points,
        samples=samples_of(images, [(trained.name, trained, measured)], 12),
        notes=[*expected(recipe, points), *notes],
        facts=facts_of(trained),
        train_sizes=trained_at,
    )
    write_html(folder / "report.html", page)
    screen().print(console_table(points))
    screen().print(f"images are seen so: {seen_as(recipe)}", soft_wrap=True)
    return measured


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
                classes[scores.predicted[place]],
                float(scores.confidence[place]),
            )
            for name, _, measured in scored
            for point, scores in measured
        ]
        picture = to_pil_image(images[int(order[place])].image)
        samples.append(Sample(record.name, picture, classes[record.target], predictions))
    return samples


def facts_of(trained: Trained) -> list[tuple[str, str]]:
    """Name and value of what matters about a training run, or about weights, for people."""
    recipe, facts = trained.recipe, trained.facts
    training = (
        []
        if trained.folder is None
        else [
            ("views", ", ".join(map(str, recipe.views.sizes)) + " px"),
            ("consistency", f"{recipe.objective.consistency} on {recipe.objective.target}"),
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
    at = {str(Size(p.height, p.width)): 100 * p.top1 for p in points}
    return [
        f"claimed at {size} px: {claim:.1f} % ({recipe.claim.source}); measured {at[size]:.1f} %, "
        f"a difference of {at[size] - claim:+.1f}"
        for size, claim in recipe.claim.top1.items()
        if size in at
    ]
