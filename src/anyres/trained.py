"""A finished run opened again: its model, recipe and classes; scored at any size, on any data with its classes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torchvision.transforms.v2.functional import to_pil_image

from anyres.config import UserError, nearest
from anyres.data.cache import DecodedImages
from anyres.data.loader import eval_batches
from anyres.data.mix import normalise
from anyres.data.sources import Source, open_source
from anyres.evaluate.curve import Measured, measure, plot, write_csv
from anyres.evaluate.report import Prediction, ReportPage, Sample, console_table, write_html
from anyres.flow import Batch, Point, Size, parse_sizes, pick_device
from anyres.models import create_model, variant
from anyres.models.contract import Backbone
from anyres.models.weights import load_weights, read_metadata
from anyres.recipe import Recipe, read_recipe
from anyres.train.parallel import autocast_dtype

WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Trained:
    """A model with what is needed to use it as it was trained, on ``device``, in evaluation mode."""

    folder: Path
    recipe: Recipe
    classes: tuple[str, ...]
    model: Backbone
    device: torch.device

    @property
    def name(self) -> str:
        """The model's name, as its recipe gives it."""
        return str(self.recipe.model["name"])

    @property
    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of the training: images, pixels, seconds, steps, notes."""
        facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return facts

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype the model runs in, None for float32."""
        return autocast_dtype(self.recipe.train.precision)

    def images(self, data: str | None = None, split: str | None = None) -> DecodedImages:
        """The images to score: the recipe's own, or those of ``data``. Raises UserError when the classes differ."""
        images = open_images(self.recipe, split or self.recipe.data.eval_split, data)
        check_classes(images.source, self.classes)
        return images

    def measure(self, images: DecodedImages, sizes: Sequence[Size], name: str = "") -> list[Measured]:
        """Accuracy, loss, MACs, latency and images/s at each size; a progress bar on stderr."""
        name, crop, console = name or self.name, crop_ratio(self.recipe), Console(stderr=True)
        return [
            measure(
                name,
                self.model,
                size,
                scored_batches(self.recipe, images, size, crop, self.device),
                self.device,
                autocast=self.autocast,
                budget_s=0.5,
            )
            for size in track(
                sizes, f"scoring {name}", console=console, transient=True, disable=not console.is_terminal
            )
        ]


def open_run(folder: Path) -> Trained:
    """Open a run folder. Raises UserError when it is none, is unfinished, or its weights do not fit its recipe."""
    if not (folder / RECIPE).is_file():
        beside = [p.parent.name for p in folder.parent.glob(f"*/{RECIPE}")]
        raise UserError(f"{folder} is not a run folder: it has no {RECIPE}{nearest(folder.name, beside)}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is not finished: it has no {WEIGHTS}; give its `anyres train` command again")
    recipe = read_recipe(folder / RECIPE)
    about = read_metadata(folder / WEIGHTS).get("anyres")
    if about is None:
        raise UserError(f"{folder / WEIGHTS} was not written by `anyres train`: it does not say what its classes are")
    classes = tuple(json.loads(about)["classes"])
    device = pick_device()
    model = build_model(recipe, len(classes))
    load_weights(model, folder / WEIGHTS)
    return Trained(folder, recipe, classes, model.to(device).eval(), device)


def build_model(recipe: Recipe, num_classes: int) -> Backbone:
    """The recipe's model, freshly initialised from the recipe's seed."""
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    torch.manual_seed(recipe.train.seed)
    return create_model(recipe.model["name"], num_classes, **options)


def open_images(recipe: Recipe, split: str, data: str | None = None) -> DecodedImages:
    """One split of the recipe's data (or of ``data``), decoded into memory if the recipe says so and they fit."""
    source = data or recipe.data.source
    if source is None:
        raise UserError("no images: give --data a folder, a CSV manifest or a built-in set such as groceries")
    opened = open_source(source, split, val_share=recipe.data.val_share)
    budget = recipe.data.cache_gib if recipe.data.cache_side else 0.0
    return DecodedImages(opened, recipe.data.cache_side, budget)


def check_classes(source: Source, classes: Sequence[str]) -> None:
    """Raises UserError unless ``source`` has exactly the classes that the model was trained on."""
    if tuple(source.classes) == tuple(classes):
        return
    strange = sorted(set(source.classes) ^ set(classes))
    raise UserError(
        f"{source.name} has {len(source.classes)} classes and the checkpoint {len(classes)}; {strange[0]!r} is in only "
        "one of them: give --data a set with the classes that the model was trained on"
    )


def crop_ratio(recipe: Recipe) -> float:
    """The centre-crop ratio of evaluation: the recipe's, or the family's own."""
    return recipe.evaluate.crop or float(variant(recipe.model["name"]).preprocessing["crop_pct"])


def scored_batches(
    recipe: Recipe, images: DecodedImages, size: Size, crop: float, device: torch.device, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every readable image once over all ranks, as one normalised view of ``size`` on ``device``."""
    loaded = eval_batches(
        images,
        images.source.targets,
        size,
        crop=crop,
        batch_size=recipe.evaluate.batch_size,
        rank=rank,
        world=world,
        workers=recipe.data.workers,
    )
    for batch in loaded:
        images.hear(batch.notes)
        yield normalise(batch, recipe.data.mean, recipe.data.std, device)


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


def evaluated_sizes(recipe: Recipe) -> tuple[Size, ...]:
    """The sizes the recipe is scored at."""
    return parse_sizes([str(size) for size in recipe.evaluate.sizes])


def report_on(trained: Trained, images: DecodedImages, sizes: Sequence[Size] | None = None) -> list[Measured]:
    """Measure a run at ``sizes`` (the recipe's if none) and write ``curve.csv``, ``curve.png`` and ``report.html``."""
    recipe, folder = trained.recipe, trained.folder
    measured = trained.measure(images, sizes or evaluated_sizes(recipe))
    points = [m.point for m in measured]
    trained_at = {trained.name: recipe.views.parsed}
    write_csv(points, folder / "curve.csv")
    plot(points, folder / "curve.png", train_sizes=trained_at)
    n, noted = points[0].n, list(map(str, trained.facts["notes"]))
    remarks = [f"{name}: {what}" for name, what in list(images.remarks().items())[:100]]
    noted = noted[:100] + ([f"... {len(noted)} such notes in all: see run.json"] if len(noted) > 100 else [])
    page = ReportPage(
        title=f"{trained.name} on {images.source.name}",
        claim=f"Top-1 accuracy on {n} images of the {images.source.split} split at every size measured.",
        points=points,
        samples=samples_of(images, [(trained.name, trained, measured)], 12),
        notes=[*expected(recipe, points), *dict.fromkeys((*noted, *images.source.notes, *remarks))],
        facts=facts_of(trained),
        train_sizes=trained_at,
    )
    write_html(folder / "report.html", page)
    screen().print(console_table(points))
    return measured


def samples_of(
    images: DecodedImages, scored: Sequence[tuple[str, Trained, Sequence[Measured]]], count: int
) -> list[Sample]:
    """``count`` images spread evenly over the set, each with what every model made of it at every size."""
    classes, samples = scored[0][1].classes, []
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
    """Name and value of what matters about a training run, for people."""
    recipe, facts = trained.recipe, trained.facts
    return [
        ("model", trained.name),
        ("views", ", ".join(map(str, recipe.views.sizes)) + " px"),
        ("consistency", f"{recipe.objective.consistency} on {recipe.objective.target}"),
        ("epochs", str(recipe.train.epochs)),
        ("seed", str(recipe.train.seed)),
        ("pixels processed", f"{facts['pixels'] / 1e9:.2f} G"),
        ("seconds of training", f"{facts['seconds']:.0f}"),
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
