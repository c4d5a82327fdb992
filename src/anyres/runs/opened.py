"""A model to be measured: a finished run, or a model's name with weights; scored at any size, on any data."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from anyres.config import UserError, nearest
from anyres.data.cache import DecodedImages
from anyres.data.loader import LoaderOptions, Rank, eval_batches
from anyres.data.mix import normalize
from anyres.data.sources import Source, open_source
from anyres.data.targets import reader_of
from anyres.evaluation.classes import Names, read_names, relabel
from anyres.evaluation.curve import Measured, measure
from anyres.evaluation.probe import Neighbours, Pooled, pool
from anyres.flow import Batch, Size, parse_sizes, pick_device
from anyres.models import create_model, list_models, variant
from anyres.models.contract import Backbone
from anyres.models.index import Weights, known_weights
from anyres.models.weights import load_weights, read_metadata, read_state, weights_file
from anyres.models.zoo import ALIASES
from anyres.recipe import Recipe, build_recipe, read_recipe
from anyres.training.parallel import autocast_dtype

WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"
UNTRAINED = "none"
"""What ``--weights`` says for a model as it is initialised."""
TIMED_S = 0.5
"""Seconds of each of a size's two timings."""


@dataclass(frozen=True)
class Trained:
    """A model with what is needed to use it as it was trained, on ``device``, in evaluation mode.

    ``folder`` is its run's; None for a model's ``name`` with ``weights``, and then ``recipe`` holds what is known of
    them: how they see images, and their published accuracy as the claim. ``names``: of the classes, as far as known.
    ``multi_label``: each class is decided by itself.
    """

    name: str
    folder: Path | None
    weights: str
    recipe: Recipe
    names: Names
    model: Backbone
    device: torch.device
    multi_label: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """What people read for each class: its name, or its index."""
        return tuple(called[-1] if called else str(i) for i, called in enumerate(self.names))

    @property
    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of the training: images, pixels, seconds, steps, notes; {} for weights."""
        facts: dict[str, Any] = json.loads((self.folder / "run.json").read_text()) if self.folder else {}
        return facts

    @property
    def by_neighbours(self) -> bool:
        """Whether it was trained without labels, and so is scored by the nearest of the training images."""
        return self.folder is not None and self.recipe.objective.dino is not None

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype the model runs in, None for float32."""
        return autocast_dtype(self.recipe.train.precision)

    def images(self, data: str | None = None, split: str | None = None) -> DecodedImages:
        """The images to score: the recipe's own, or those of ``data``, labelled in the model's order of classes.

        A run wants exactly its own classes, weights may know more than there are, a run without labels takes any.
        Raises UserError when they do not fit, or the model has no classifier.
        """
        if self.by_neighbours:
            return open_images(self.recipe, split or self.recipe.data.eval_split, data, one_label_each)
        if not self.names:
            raise UserError(f"{self.name} has no classifier: `anyres probe` measures what its features are worth")
        fit = self._relabelled if self.folder is None else self._as_trained
        return open_images(self.recipe, split or self.recipe.data.eval_split, data, fit)

    def _relabelled(self, source: Source) -> Source:
        self._check_kind(source)
        return relabel(source, self.names)

    def _as_trained(self, source: Source) -> Source:
        self._check_kind(source)
        check_classes(source, self.classes)
        return source

    def _check_kind(self, source: Source) -> None:
        """Raises UserError unless images have several labels where the model gives several."""
        if source.multi_label != self.multi_label:
            here, there = ("several labels", "one") if source.multi_label else ("one label", "several")
            raise UserError(
                f"images of {source.name} have {here} each, and {self.name} was trained to give them {there}: give "
                "--data images labelled as those were"
            )

    def pooled(self, images: DecodedImages, size: Size) -> Pooled:
        """What the classifier would see of each labelled image; a progress bar on stderr."""
        console, crop = Console(stderr=True), crop_ratio(self.recipe)
        shown = track(
            scored_batches(self.recipe, images, size, crop, self.device),
            f"features of {self.name}",
            total=-(-len(images) // self.recipe.evaluate.batch_size),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        return pool(self.model, shown, len(images), self.device, self.autocast)

    def neighbours(self, bank: DecodedImages, size: Size) -> Neighbours:
        """The model, answering at ``size`` by the nearest of ``bank``."""
        return Neighbours(self.model, self.pooled(bank, size), len(bank.source.classes), self.device)

    def measure(self, images: DecodedImages, sizes: Sequence[Size], name: str = "") -> list[Measured]:
        """Accuracy, loss, MACs, latency and images/s at each size; a progress bar on stderr."""
        name, crop, console = name or self.name, crop_ratio(self.recipe), Console(stderr=True)
        bank = labelled_for(self.recipe, images) if self.by_neighbours else None
        return [
            measure(
                name,
                self.model if bank is None else self.neighbours(bank, size),
                size,
                scored_batches(self.recipe, images, size, crop, self.device),
                self.device,
                autocast=self.autocast,
                budget_s=TIMED_S,
                timed=self.model,
                multi_label=images.source.multi_label,
            )
            for size in track(
                sizes, f"scoring {name}", console=console, transient=True, disable=not console.is_terminal
            )
        ]


def open_run(folder: Path) -> Trained:
    """Open a run folder. Raises UserError when it is none, is unfinished, or its weights do not fit its recipe."""
    if not (folder / RECIPE).is_file():
        known = [p.parent.name for p in folder.parent.glob(f"*/{RECIPE}")]
        if folder.name == str(folder):  # it may be meant as a name
            known += [*list_models(), *ALIASES, *(row.name for row in known_weights())]
        raise UserError(f"{folder} is not a run folder: it has no {RECIPE}{nearest(folder.name, known)}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is not finished: it has no {WEIGHTS}; give its `anyres train` command again")
    recipe = read_recipe(folder / RECIPE)
    about = read_metadata(folder / WEIGHTS).get("anyres")
    if about is None:
        raise UserError(f"{folder / WEIGHTS} was not written by `anyres train`: it does not say what its classes are")
    told = json.loads(about)
    classes = tuple(told["classes"])
    model = build_model(recipe, len(classes))
    load_weights(model, folder / WEIGHTS)
    device = pick_device()
    names = tuple((name,) for name in classes)
    name = str(recipe.model["name"])
    multi_label = bool(told.get("multi_label"))
    return Trained(name, folder, str(folder / WEIGHTS), recipe, names, model.to(device).eval(), device, multi_label)


def open_trained(what: str, weights: str | None = None, classes: Path | None = None) -> Trained:
    """A run folder; or the name of a model or of known weights (``deit3_small.384``) with ``weights`` and ``classes``.

    ``weights``: a file, URL, hub id or name of the index, or ``none`` for a model as it is initialised; only a name of
    the index does without. ``classes``: see ``read_names``. Raises UserError.
    """
    is_name = what in (*list_models(), *ALIASES, *(row.name for row in known_weights()))
    if weights is None and (not is_name or (Path(what) / RECIPE).is_file()):
        if classes is not None:
            raise UserError(f"--classes goes with --weights: the run {what} knows its classes")
        return open_run(Path(what))
    return open_weights(what, weights, read_names(classes) if classes else None)


def open_weights(what: str, weights: str | None, names: Names | None = None) -> Trained:
    """The model called ``what`` with ``weights``, seeing images as the index says, or else as its family does."""
    row = _known(what, weights)
    model = row.model if row and what == row.name else what
    source = weights or (row.name if row else UNTRAINED)
    path = None if source == UNTRAINED else weights_file(source)
    state = read_state(path) if path else {}
    # S60_multi has a head of one number for each class, all others one of all numbers
    biases = [tensor.numel() for key, tensor in state.items() if re.fullmatch(r"head\.(\d+\.)?bias", key)]
    count = sum(biases) if path else int(variant(model).preprocessing["num_classes"])
    metadata = read_metadata(path) if path and path.suffix == ".safetensors" else {}
    about = json.loads(metadata.get("anyres", "{}"))
    names = names or tuple((name,) for name in about.get("classes", ()))
    if names and len(names) != count:
        raise UserError(f"{len(names)} classes are named, and {source} has {count}: correct --classes")
    recipe = build_recipe(_values(model, row, _native_side(model, row, state), about), source)
    built = build_model(recipe, count)
    if path:
        load_weights(built, path)
    device = pick_device()
    name = row.name if row else model
    several = bool(about.get("multi_label"))
    return Trained(name, None, source, recipe, names or ((),) * count, built.to(device).eval(), device, several)


def _values(model: str, row: Weights | None, side: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of weights, as the plain values of a recipe; ``about`` is what a run wrote into its file."""
    values: dict[str, Any] = {
        "model": {"name": model, **({"img_size": side} if _has_grid(model) else {})},
        "data": {key: about[key] for key in ("mean", "std") if key in about},
        "views": {"sizes": [side]},
        "evaluate": {"sizes": [side]},
    }
    if row:
        claim = {str(size): top1 for size, top1 in row.top1.items()}
        values["claim"] = {"source": f"{row.source}, on ImageNet-1k", "top1": claim} if claim else {}
        values["data"] = {"mean": row.mean, "std": row.std}
        values["evaluate"] |= {"crop": row.crop_pct, "warp": row.crop_mode == "squash"}
    return values


def _known(what: str, weights: str | None) -> Weights | None:
    """The row of the index that ``what`` or ``weights`` names. Raises UserError where they do not go together."""
    rows = {row.name: row for row in known_weights()}
    own, given = rows.get(what), rows.get(weights or "")
    if own is None:
        official = variant(what).name
        if weights is None:
            published = ", ".join(row.name for row in known_weights(official) if row.url)
            also = f" or a name of the index ({published})" if published else ""
            raise UserError(f"{what} is a model, not its weights: give --weights a file, an address, a hub id{also}")
        if given and given.model != official:
            raise UserError(f"{weights} is of {given.model}, not of {official}: leave out --weights, or {what!r}")
    elif given and given != own:
        raise UserError(f"{what} and --weights {weights} are two sets of weights: name one")
    return own or given


def _has_grid(model: str) -> bool:
    """Whether the family's tables are for a grid that is chosen when the model is built."""
    return "img_size" in {f.name for f in fields(variant(model).config)}


def _native_side(model: str, row: Weights | None, state: Mapping[str, Tensor]) -> int:
    """The side in pixels for which weights were made: the index's, or, of the sizes known, that whose tensors have
    most shapes in common with the file's, so that no table is carried to another grid and back."""
    about = variant(model)
    sides = [int(about.preprocessing["input_size"][1]), *(known.img_size for known in about.weights)]
    if row:
        return row.img_size
    if not state or not _has_grid(model):
        return sides[0]
    shapes = Counter(tuple(tensor.shape) for tensor in state.values())

    def alike(side: int) -> int:
        with torch.device("meta"):
            built = create_model(model, img_size=side)
        own = Counter(tuple(tensor.shape) for tensor in built.state_dict().values())
        return (own & shapes).total()

    return max(dict.fromkeys(sides), key=alike)


def build_model(recipe: Recipe, num_classes: int) -> Backbone:
    """The recipe's model, freshly initialised from the recipe's seed; ResMLP is told when it sees several sizes."""
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    if len(recipe.views.sizes) > 1 and variant(recipe.model["name"]).family == "resmlp":
        options["any_size"] = True
    torch.manual_seed(recipe.train.seed)
    return create_model(recipe.model["name"], num_classes, **options)


def start_from(model: Backbone, weights: str) -> str:
    """Load ``weights`` for training on; a sentence on what became of the classifier. Raises UserError."""
    fresh = load_weights(model, weights, replace_head="if_needed")
    if not model.num_classes:
        return f"starting from {weights}, without a classifier"
    classes = f"a new classifier of {model.num_classes} classes" if fresh else "its classifier too"
    return f"starting from {weights}, with {classes}"


def open_images(
    recipe: Recipe,
    split: str,
    data: str | None = None,
    fit: Callable[[Source], Source] = lambda source: source,
    *,
    training: bool = False,
    unlabelled: bool = False,
) -> DecodedImages:
    """One split of the recipe's data (or of ``data``), decoded into memory if the recipe says so and they fit.

    ``fit`` checks its classes, or numbers them otherwise, before anything is decoded. Only images for ``training`` are
    decoded as ``data.dct`` says: what is scored is read in full, whatever the recipe. ``unlabelled``: images without
    labels will do.
    """
    source = data or recipe.data.source
    if source is None:
        raise UserError("no images: give --data a folder, a CSV manifest or a built-in set such as groceries")
    opened = fit(open_source(source, split, val_share=recipe.data.val_share, unlabelled=unlabelled))
    budget = recipe.data.cache_gib if recipe.data.cache_side else 0.0
    largest = max(max(size) for size in recipe.views.parsed)
    dct_side = largest if training and recipe.data.dct else None
    return DecodedImages(opened, recipe.data.cache_side, budget, dct_side=dct_side)


def labelled_for(recipe: Recipe, images: DecodedImages) -> DecodedImages:
    """The images whose labels are given where those of ``images`` are asked for. Raises UserError if some are both."""
    split = images.source.split
    if split.startswith("train"):
        raise UserError(f"--split {split} is what the probe learns from: give val or test")
    train = open_images(recipe, recipe.data.train_split if split == "test" else "train", images.source.name)
    check_apart(train, images)
    return train


def one_label_each(source: Source) -> Source:
    """``source``, for whom neighbours or a linear layer answer by one class. Raises UserError for several labels."""
    if source.multi_label:
        raise UserError(f"images of {source.name} have several labels: nearest neighbours and probes want one each")
    return source


def check_apart(train: DecodedImages, test: DecodedImages) -> None:
    """Raises UserError if images are in both, so that they would find themselves."""
    both = {r.name for r in train.source.records} & {r.name for r in test.source.records}
    if both:
        raise UserError(
            f"{len(both)} images, as {min(both)}, are in {train.source.split} and {test.source.split}: "
            f"add a {test.source.split} split"
        )


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


def seen_as(recipe: Recipe) -> str:
    """How evaluation shows an image to the model, for people."""
    crop = crop_ratio(recipe)
    shrunk = f"short side at most {recipe.data.cache_side} px, then " if recipe.data.cache_side else ""
    side = "the size" if crop == 1 else f"int(size / {crop:g})"
    cut = "warped to the size" if recipe.evaluate.warp else f"short side to {side}, centre crop"
    mean, std = (" ".join(f"{v:g}" for v in values) for values in (recipe.data.mean, recipe.data.std))
    return f"{shrunk}{cut}; bicubic, antialiased; mean {mean}, std {std}"


def scored_batches(
    recipe: Recipe, images: DecodedImages, size: Size, crop: float, device: torch.device, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every readable image once over all ranks, as one normalised view of ``size`` on ``device``."""
    loaded = eval_batches(
        images,
        images.source.records,
        reader_of(images.source),
        size,
        crop=crop,
        warp=recipe.evaluate.warp,
        batch_size=recipe.evaluate.batch_size,
        rank=Rank(rank, world),
        options=LoaderOptions(recipe.data.workers),
    )
    for batch in loaded:
        images.add_warnings(batch.notes)
        yield normalize(batch, recipe.data.mean, recipe.data.std, device)


def evaluated_sizes(recipe: Recipe) -> tuple[Size, ...]:
    """The sizes the recipe is scored at."""
    return parse_sizes([str(size) for size in recipe.evaluate.sizes])
