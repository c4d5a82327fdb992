"""A model to be used: a finished run, or a model's name with weights; measured at any size, on any data."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from rich.progress import track
from torch import Tensor, nn

from anyres.config import Damaged, UserError, first_line, nearest
from anyres.data.cache import DecodedImages
from anyres.data.raw_dataset import one_form
from anyres.data.sources import Source
from anyres.evaluation.classes import Names, read_names
from anyres.evaluation.curve import EvalResult, Quality, measure_quality
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.imagenet import COUNT, IMAGENET, imagenet_names
from anyres.evaluation.probe import Pooled, pool
from anyres.evaluation.speed import measure_costs_of
from anyres.flow import Size, SizeResult, pick_device
from anyres.models import create_model, variant
from anyres.models.contract import Backbone, Loadable, Network, count_classes
from anyres.models.fetch import fetch_run
from anyres.models.index import Weights, known_weights
from anyres.models.registry import is_model, model_names
from anyres.models.state_files import read_state, weights_file
from anyres.models.weights import PRETRAINED, load_weights, read_metadata, reorder_head
from anyres.recipe import Recipe, build_recipe, read_recipe
from anyres.runs.inputs import (
    evaluated_sizes,
    frames_of,
    is_same_data,
    open_test_images,
    reference_images,
    scored_batches,
    with_channels,
)
from anyres.runs.stderr import doing, show_log
from anyres.storage import check_types, parse_json, read_json
from anyres.tasks import Reference, Task, task_of
from anyres.training.parallel import autocast_dtype

log = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"
FACTS = "run.json"
PUBLISHED = (FACTS, "curve.csv", "cascade.json")
"""Of a run on the hub, beside weights and recipe, where it has them."""
UNTRAINED = "none"
"""What ``--weights`` says for a model as it is initialized."""
TIMED_S = 0.5
"""Seconds of each of a size's two timings."""
ABOUT = {
    "model": dict[str, Any],
    "mean": list[float],
    "std": list[float],
    "task": str,
    "classes": list[str],
    "multi_label": bool,
}
"""The types of what a file of weights says of itself; a task may add to it."""
IN_FACTS = {
    "images": int,
    "pixels": int,
    "seconds": float,
    "steps": int,
    "skipped_steps": int,
    "scored": bool,
    "notes": list[str],
    "evaluation": dict[str, Any],
    "kept": dict[str, Any],
    "ended": str,
}
"""The types of what ``run.json`` says; the best value of the headline metric comes beside."""


@dataclass(frozen=True)
class ModelSpec:
    """Names a model: ``what`` is a run folder, a model, or known weights such as ``deit3_small.384``; ``weights`` a
    file, URL, hub id, known name, or ``none`` for a model as it is initialized; ``classes`` a file of class names, or
    ``imagenet``."""

    what: str
    weights: str | Path | None = None
    classes: str | Path | None = None


@dataclass(frozen=True)
class DataSpec:
    """Names the images to measure on; None: the recipe's own."""

    data: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A model with what is needed to use it as it was trained, on ``device``, in evaluation mode.

    ``folder`` is its run's; None for a model's ``name`` with ``weights``, and then ``recipe`` holds what is known of
    them: how they see images, and their published accuracy as the claim. ``names``: of the classes, as far as known.
    ``learnt_from``: the images it was trained on, where a run says so.
    """

    name: str
    folder: Path | None
    weights: str
    recipe: Recipe
    names: Names
    model: Network
    device: torch.device
    task: Task
    learnt_from: str | None = None

    @property
    def backbone(self) -> Backbone:
        """The model, where it is a backbone with its classifier. Raises UserError where more is built on it."""
        if not isinstance(self.model, Backbone):
            raise UserError(
                f"{self.name} was trained for task={self.task.name}: that can be trained, measured, picked and asked "
                "(train, eval, curve, pick, predict), and no more"
            )
        return self.model

    @property
    def classes(self) -> tuple[str, ...]:
        """What people read for each class: its name, or its index."""
        return self.task.classes

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of the training: images, pixels, seconds, steps, notes; {} for weights.

        Of a run whose file is missing or damaged: a note that says so, and nothing else.
        """
        return read_facts(self.folder / FACTS) if self.folder else {}

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype the model runs in, None for float32."""
        return autocast_dtype(self.recipe.train.precision)

    @property
    def settings(self) -> EvalSettings:
        """How it is run here."""
        return EvalSettings(self.device, self.autocast)

    def images(self, where: DataSpec = DataSpec()) -> DecodedImages:
        """The images to score: the recipe's own, or others, with targets counted as the model does.

        Classes are those of the model by their names, and some of them may have no image; a run without labels takes
        any. Of other images without a val or test split all are scored. Raises UserError when they do not fit, or the
        model has no classifier.
        """
        if not self.model.num_classes and self.folder is None:
            raise UserError(f"{self.name} has no classifier: `anyres probe` measures what its features are worth")
        own = where.data is None or self.task.compares or is_same_data(where.data, self.learnt_from)
        split = where.split or (self.recipe.data.eval_split if own else None)
        wanted = "classes" if self.task.wanted == "optional" else self.task.wanted  # to be scored, images need labels
        return open_test_images(self.recipe, split, where.data, wanted, self._fit)

    def _fit(self, source: Source) -> Source:
        return self.task.fit(source, self.names)

    def pooled(self, images: DecodedImages, size: Size) -> Pooled:
        """What the classifier would see of each labelled image, one label each; a progress bar on stderr."""
        total = -(-len(images) // self.recipe.evaluate.batch_size)
        shown = track(
            scored_batches(self.recipe, task_of({}), images, size, self.device),
            f"features of {self.name}",
            total=total,
            transient=True,
            disable=not get_console().is_terminal,
        )
        return pool(self.backbone, shown, len(images), self.settings)

    def quality(self, images: DecodedImages, sizes: Sequence[Size], name: str = "") -> dict[Size, Quality]:
        """Metrics and scores per image at each size; a progress bar on stderr. Raises UserError."""
        self.model.check_sizes(sizes)
        shown = track(sizes, f"scoring {name or self.name}", transient=True, disable=not get_console().is_terminal)
        reference = reference_images(self.recipe, images) if self.task.compares else None
        found = {}
        for size in shown:
            evaluators = self.task.evaluators(self.model, self._reference(reference, size))
            batches = partial(scored_batches, self.recipe, self.task.scoring(), images, size, self.device)
            found[size] = measure_quality(self.model, evaluators, size, batches, self.settings)
        return found

    def measure(self, images: DecodedImages, sizes: Sequence[Size]) -> list[EvalResult]:
        """Quality at each size, then the cost of all of them in turn. Raises UserError."""
        return measure_models({self.name: self}, images, sizes)[self.name]

    def _reference(self, images: DecodedImages | None, size: Size) -> Reference | None:
        if images is None:
            return None
        batches = partial(scored_batches, self.recipe, self.task.scoring(), images, size, self.device)
        return Reference(batches, len(images), len(images.source.classes))


Model = str | Path | ModelSpec | TrainedModel
"""A run folder, the name of a model or of known weights, a ModelSpec with weights, or what ``load`` returned."""


def measure_models(
    models: Mapping[str, TrainedModel], images: DecodedImages, sizes: Sequence[Size]
) -> dict[str, list[EvalResult]]:
    """Quality of every model at each size; then the cost of all models and sizes, timed in turn in one window.

    The models run on one device in one precision. Raises UserError.
    """
    qualities = {name: model.quality(images, sizes, name) for name, model in models.items()}
    return with_costs(models, qualities, images.channels)


def with_costs(
    models: Mapping[str, TrainedModel], qualities: Mapping[str, Mapping[Size, Quality]], channels: int
) -> dict[str, list[EvalResult]]:
    """What models were measured to be, with their costs: all models and sizes timed in turn in one window.

    The models run on one device in one precision, were measured at the same sizes, and take images of ``channels``.
    """
    settings = next(iter(models.values())).settings
    networks = {name: model.model for name, model in models.items()}
    sizes = tuple(next(iter(qualities.values())))
    with doing(f"timing {len(sizes)} sizes"):
        costs = measure_costs_of(networks, sizes, settings.device, settings.autocast, TIMED_S, channels=channels)
    results: dict[str, list[EvalResult]] = {}
    for name, model in models.items():
        results[name] = []
        for size, (metrics, scores) in qualities[name].items():
            described = tuple(metric for metric in model.task.metrics if metric.key in metrics)
            result = SizeResult(name, size, metrics, described, scores.n, costs[name, size])
            results[name].append(EvalResult(result, scores))
    return results


def read_facts(path: Path) -> dict[str, Any]:
    """What ``run.json`` says; where it is missing or damaged, a note of that: the run can be used all the same."""
    try:
        facts: dict[str, Any] = read_json(path, dict[str, Any])
        check_types(facts, IN_FACTS)
        return facts
    except (OSError, ValueError, Damaged) as error:
        reason = str(error) if isinstance(error, Damaged) else f"{path}: {first_line(error)}"
        note = f"{reason}: what it said of the training is lost, and the weights are as they were"
        log.warning(note)
        return {"notes": [note]}


def read_about(path: Path) -> dict[str, Any] | None:
    """What a file of weights says of itself, checked; None where it says nothing. Raises UserError for garbage."""
    text = read_metadata(path).get("anyres")
    try:
        if text is None:
            return None
        about: dict[str, Any] = parse_json(text, dict[str, Any])
        check_types(about, ABOUT)
        about.pop("sha256", None)
        return about
    except ValueError as error:
        raise UserError(
            f"{path}: what it says of its model and classes is damaged ({error}): give --weights another file"
        ) from None


def load(what: str | Path, weights: str | Path | None = None, classes: str | Path | None = None) -> TrainedModel:
    """Open a trained model, on the best device of this machine, in evaluation mode.

    ``what``: a run folder, or ``hf:owner/name`` for a run on the hub (`anyres push`); or the name of a model or of
    known weights (``deit3_small.384``) with ``weights`` and ``classes``. ``weights``: a file, URL, hub id or name of
    the index, or ``none`` for a model as it is initialized; only a name of the index does without. ``classes``: a file
    of class names, see ``evaluation.classes.read_names``, or ``imagenet``; weights of the index answer with ImageNet's
    names by themselves.
    Raises UserError where there is no such model or its weights do not fit.
    """
    show_log()
    if weights is None and str(what).startswith("hf:"):
        if classes is not None:
            raise UserError(f"--classes goes with --weights: the run {what} knows its classes")
        return replace(open_run(fetch_run(str(what), (WEIGHTS, RECIPE), PUBLISHED)), weights=str(what))
    what, weights = str(what), str(weights) if weights is not None else None
    is_name = is_model(what) or what in (row.name for row in known_weights())
    if weights is None and (not is_name or (Path(what) / RECIPE).is_file()):
        if classes is not None:
            raise UserError(f"--classes goes with --weights: the run {what} knows its classes")
        return open_run(Path(what))
    return open_weights(what, weights, _named_in(str(classes)) if classes else None)


def _named_in(classes: str) -> Names:
    """The names that ``--classes`` means: ImageNet's, or a file's."""
    return imagenet_names() if classes == IMAGENET and not Path(classes).exists() else read_names(Path(classes))


def open_model(model: Model) -> TrainedModel:
    """The model that is named; that it has learnt nothing is logged. Raises UserError."""
    if isinstance(model, TrainedModel):
        return model
    spec = model if isinstance(model, ModelSpec) else ModelSpec(str(model))
    with doing(f"opening {spec.what}"):
        trained = load(spec.what, spec.weights, spec.classes)
    if trained.weights == UNTRAINED:
        log.info("%s is as it was initialized: it has learnt nothing", trained.name)
    return trained


def check_run(folder: Path) -> None:
    """Raises UserError when a folder is no run's, or its run is unfinished."""
    if not (folder / RECIPE).is_file():
        known = [p.parent.name for p in folder.parent.glob(f"*/{RECIPE}")]
        if folder.name == str(folder):  # it may be meant as a name
            known += [*model_names(), *(row.name for row in known_weights())]
        raise UserError(f"{folder} is not a run folder: it has no {RECIPE}{nearest(folder.name, known)}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is not finished: it has no {WEIGHTS}; give its `anyres train` command again")


def open_run(folder: Path) -> TrainedModel:
    """Open a run folder. Raises UserError when it is none, is unfinished, or its weights do not fit its recipe."""
    check_run(folder)
    recipe = read_recipe(folder / RECIPE)
    recipe = with_channels(recipe, recipe.data.channels or 3)  # runs of earlier versions name none
    about = read_about(folder / WEIGHTS)
    if about is None:
        raise UserError(f"{folder / WEIGHTS} was not written by `anyres train`: it does not say what its classes are")
    task = task_of(about, recipe.task, recipe.objective)
    model = build_model(recipe, task)
    load_weights(model, folder / WEIGHTS)
    device = pick_device()
    names = tuple((name,) for name in task.classes)
    name = str(recipe.model["name"])
    where, learnt_from = str(folder / WEIGHTS), recipe.data.source
    return TrainedModel(name, folder, where, recipe, names, model.to(device).eval(), device, task, learnt_from)


def open_weights(what: str, weights: str | None, names: Names | None = None) -> TrainedModel:
    """The model called ``what`` with ``weights``, seeing images as the index says, or else as its family does."""
    row = _known(what, weights)
    model = row.model if row and what == row.name else what
    source = weights or (row.name if row else UNTRAINED)
    path = None if source == UNTRAINED else weights_file(source)
    state = read_state(path) if path else {}
    known = variant(model).preprocessing
    count = count_classes(known["classifier"], state) if path else int(known["num_classes"])
    about = (read_about(path) if path and path.suffix == ".safetensors" else None) or {}
    names = names or tuple((name,) for name in about.get("classes", ()))
    if names and len(names) != count:
        raise UserError(f"{len(names)} classes are named, and {source} has {count}: correct --classes")
    recipe = build_recipe(_values(model, row, _native_side(model, row, state), about), source)
    recipe = with_channels(recipe, len(recipe.data.mean))
    task = task_of(about)
    if task.wanted != "text":  # it has classes
        names = names or ((),) * count
        known_as = names
        if count == COUNT and not any(names):
            if row:  # the index is of ImageNet-1k's
                known_as = imagenet_names()
            elif path:
                log.info("classes are called by number: --classes imagenet names ImageNet's, --classes FILE others")
        task = replace(task, classes=tuple(called[-1] if called else str(i) for i, called in enumerate(known_as)))
    built = build_backbone(recipe, count)
    if path:
        load_weights(built, path)
    device = pick_device()
    name = row.name if row else model
    run = path.parent / RECIPE if path else None  # a file may still lie in its run
    learnt_from = read_recipe(run).data.source if run and run.is_file() else None
    return TrainedModel(name, None, source, recipe, names or (), built.to(device).eval(), device, task, learnt_from)


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
    if warp := variant(model).traits.warp_from:  # by size, whatever the weights
        values["evaluate"]["warp"] = warp
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


def build_backbone(recipe: Recipe, outputs: int) -> Backbone:
    """The recipe's model with so many outputs (0: no classifier), initialized from the recipe's seed, with the family's
    options for training at several sizes."""
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    if len(recipe.views.sizes) > 1:
        options |= variant(recipe.model["name"]).traits.several_sizes
    if recipe.data.channels not in (None, 3) and frames_of(recipe) is None:
        options["in_chans"] = recipe.data.channels
    torch.manual_seed(recipe.train.seed)
    return create_model(recipe.model["name"], outputs, **options)


def build_model(recipe: Recipe, task: Task, *, training: bool = False) -> Network:
    """The task's network for the recipe. Raises UserError where it is for ``training`` and cannot take the views."""
    model = task.build(partial(build_backbone, recipe), recipe.head)
    assert isinstance(model, Network)
    if training:
        model.check_sizes(recipe.views.parsed, training=True)
    return model


def check_sizes(recipe: Recipe) -> None:
    """Raises UserError, before anything is decoded, for a size of views or of evaluation that the model cannot take."""
    if variant(recipe.model["name"]).foreign:
        model = build_backbone(recipe, 2)
        model.check_sizes(recipe.views.parsed, training=True)
        model.check_sizes(evaluated_sizes(recipe))


def start_from(model: nn.Module, weights: str, classes: Sequence[str] = ()) -> str:
    """Load ``weights`` for training on; a sentence on what became of the classifier. Raises UserError.

    ``model``: a network, or the part of it that weights fill.

    ``classes``: of ``model``, in its order. Where the weights name theirs, outputs are matched by name: the same
    classes in another order are put in this one's, and for others the classifier is new, though they be as many.
    """
    assert isinstance(model, Loadable)
    if not isinstance(model, Network):
        load_weights(model, weights)
        return f"starting from {weights}, the backbone alone"
    theirs, ours = _names_in(weights), [one_form(name) for name in classes]
    others = bool(theirs and ours) and sorted(theirs) != sorted(ours)
    fresh = load_weights(model, weights, replace_head=True if others else "if_needed").new_classifier
    if not model.num_classes:
        return f"starting from {weights}, without a classifier"
    if fresh:
        return f"starting from {weights}, with a new classifier of {model.num_classes} classes"
    if theirs and ours and theirs != ours:
        reorder_head(model, [theirs.index(name) for name in ours])
        return f"starting from {weights}, with its classifier too, of the same classes in another order"
    return f"starting from {weights}, with its classifier too"


def _names_in(weights: str) -> list[str]:
    """What a file of weights calls its classes; [] where it does not say."""
    if weights == PRETRAINED and not Path(weights).exists():
        return []
    path = weights_file(weights)
    about = read_about(path) if path.suffix == ".safetensors" else None
    return [one_form(str(name)) for name in (about or {}).get("classes", ())]
