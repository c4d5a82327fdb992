"""A finished run opened again: its model, recipe and classes; scored at any size, on any data with its classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from anyres.config import UserError, nearest
from anyres.data.cache import DecodedImages
from anyres.data.loader import eval_batches
from anyres.data.mix import normalise
from anyres.data.sources import Source, open_source
from anyres.evaluate.curve import Measured, measure
from anyres.flow import Batch, Size, parse_sizes, pick_device
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
    """The recipe's model, freshly initialised from the recipe's seed; ResMLP is told when it sees several sizes."""
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    if len(recipe.views.sizes) > 1 and variant(recipe.model["name"]).family == "resmlp":
        options["any_size"] = True
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


def evaluated_sizes(recipe: Recipe) -> tuple[Size, ...]:
    """The sizes the recipe is scored at."""
    return parse_sizes([str(size) for size in recipe.evaluate.sizes])
