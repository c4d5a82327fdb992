"""Choose a cascade for a run on one half of its held-out images, and measure it on the other half."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import rich
import torch
from rich.progress import track
from torch import Tensor

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable
from anyres.data.sources import open_source
from anyres.deploy.cascade import Cascade, CascadePredictor, choose
from anyres.deploy.engines.backend import Backend
from anyres.deploy.predictor import EngineOptions, Predictor, Preprocessing
from anyres.evaluation.measured import TOP1
from anyres.evaluation.metrics import wilson
from anyres.evaluation.plots.curve import plot
from anyres.evaluation.speed import macs
from anyres.flow import Batch, Cost, Estimate, Size, SizeResult
from anyres.runs.bounds import check_sizes_fit
from anyres.runs.inputs import crop_ratio, interpolation_of, scored_batches
from anyres.runs.opened import DataSpec, TrainedModel, open_run
from anyres.runs.stderr import doing
from anyres.storage import remove_drafts

log = logging.getLogger(__name__)

FILE, PICTURE = "cascade.json", "cascade.png"
CALIBRATION = 128
"""Number of training images from which int8 reads its ranges."""
FEWEST_IMAGES = 20
"""Held-out images: one half chooses, the other half measures."""


@dataclass(frozen=True)
class Stage:
    """One size on all held-out images."""

    logits: Tensor  # (n, k), in the order of the images
    seconds: float  # of the model for one image


@dataclass(frozen=True)
class CascadeResult:
    """The cascade, and its largest size alone, on the images that did not choose it."""

    n: int  # images
    right: int  # images that the cascade has right
    right_alone: int  # images that the largest size alone has right
    gained: int  # images that only the cascade has right
    lost: int  # images that only the largest size alone has right
    seconds: float  # of the cascade for one image
    seconds_alone: float  # of the largest size alone for one image
    shares: tuple[float, ...]  # of the images, by the stage that answers them


@dataclass(frozen=True)
class ChosenCascade:
    """A cascade with the measurements behind it."""

    cascade: Cascade
    result: CascadeResult  # on the half that did not choose
    stages: Mapping[Size, Stage]  # every size that was tried
    target: Tensor  # (n,) labels of all held-out images


def choose_cascade(
    folder: Path, sizes: Sequence[Size], max_loss: float, options: EngineOptions, data: str | None = None
) -> ChosenCascade:
    """Choose a cascade of ``sizes`` for the run ``folder``, measure it, and keep it there with a picture.

    ``max_loss``: points of top-1 that it may lose against the largest size. ``data``: other held-out images than the
    recipe's. Raises UserError.
    """
    if max_loss < 0:
        raise UserError(f"--max-loss {max_loss} is in points of top-1: give 0 or more, as 0.3")
    trained = open_run(folder)
    if trained.task.activation != "softmax":
        raise UserError(f"{folder} gives several labels: a cascade wants one class an image")
    check_sizes_fit(sizes, trained.recipe, options.batch)
    images = trained.images(DataSpec(data))
    if len(images) < FEWEST_IMAGES:
        raise UserError(f"{len(images)} held-out images are too few to choose with and to measure on: give --data more")
    predictors = predictors_for(trained, list(dict.fromkeys(sizes)), options)
    stages, target = run_stages(trained, images, predictors)
    cascade = choose_by_half(stages, target, max_loss)
    remove_drafts(folder)
    cascade.write(folder / FILE)
    result = measure(trained, images, predictors, cascade)
    points = [_point(trained, size, stage, target[1::2], stage.logits[1::2]) for size, stage in stages.items()]
    points.append(cascade_point(trained, cascade, result))
    plot(points, folder / PICTURE, f"{trained.name}: sizes and their cascade")
    log.info("kept in %s; %s shows it; `anyres predict %s IMAGE --cascade`", folder / FILE, folder / PICTURE, folder)
    return ChosenCascade(cascade, result, stages, target)


def choose_by_half(stages: Mapping[Size, Stage], target: Tensor, max_loss: float) -> Cascade:
    """Choose by every second image; the others are left to measure on."""
    logits = {size: stage.logits[::2] for size, stage in stages.items()}
    return choose(logits, target[::2], {size: stage.seconds for size, stage in stages.items()}, max_loss)


def predictor_for(trained: TrainedModel, size: Size, options: EngineOptions) -> Predictor:
    """The model at ``size``, with the preprocessing of its evaluation. Raises UserError."""
    return Predictor(
        trained.backbone,
        options.backend,
        size,
        batch=options.batch,
        calibration=calibration(trained, options.backend),
        preprocessing=preprocessing(trained, size),
        names=trained.classes,
        activation="sigmoid" if trained.task.activation == "sigmoid" else "softmax",
        huge_pages=options.huge_pages,
    )


def calibration(trained: TrainedModel, backend: str) -> list[Tensor]:
    """Some of a run's training images, for int8; none for another precision. Raises UserError."""
    if backend.partition(":")[0] == "auto" or Backend.parse(backend).precision != "int8":
        return []
    data = trained.recipe.data
    if trained.folder is None or data.source is None:
        raise UserError(
            f"{backend} reads its ranges from a run's training images, and {trained.name} is no run: use :bf16"
        )
    source = open_source(data.source, data.train_split, val_share=data.val_share, wanted="optional")
    images = DecodedImages(source, data.cache_side, budget_gib=0.0)
    found: list[Tensor] = []
    for i in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist():
        with suppress(Unreadable):
            found.append(images[i].image.contiguous())
        if len(found) == CALIBRATION:
            break
    return found


def predictors_for(trained: TrainedModel, sizes: Sequence[Size], options: EngineOptions) -> dict[Size, Predictor]:
    """One predictor per size, all of one engine: the idle threads of two would compete for the processors.

    Of the backends that ``auto`` measured at every size, the fastest over all sizes together.
    """
    made = {}
    for size in sizes:
        with doing(f"building {options.backend} at {size} px"):
            made[size] = predictor_for(trained, size, options)
    times = [{timing.backend: timing.ms for timing in predictor.timings} for predictor in made.values()]
    everywhere = set.intersection(*map(set, times))
    if len({predictor.backend for predictor in made.values()}) == 1 or not everywhere:
        return made
    best = min(everywhere, key=lambda backend: sum(each[backend] for each in times))
    log.info("one engine for all sizes of a cascade: %s, the fastest over them together", best)
    return {size: predictor_for(trained, size, replace(options, backend=best)) for size in sizes}


def preprocessing(trained: TrainedModel, size: Size) -> Preprocessing:
    """How the recipe's evaluation prepares images of a size."""
    data = trained.recipe.data
    warp, how = trained.recipe.evaluate.warps(size), interpolation_of(trained.recipe)
    return Preprocessing(data.mean, data.std, crop_ratio(trained.recipe), warp, how)


def open_cascade(trained: TrainedModel, folder: Path, options: EngineOptions) -> CascadePredictor:
    """The run's kept cascade, ready for images. Raises UserError when there is none."""
    cascade = Cascade.read(folder / FILE)
    return CascadePredictor(list(predictors_for(trained, cascade.parsed, options).values()), cascade)


def run_stages(
    trained: TrainedModel, images: DecodedImages, predictors: Mapping[Size, Predictor]
) -> tuple[dict[Size, Stage], Tensor]:
    """Every readable image at every size, the sizes in turn on each batch; and the labels (n,)."""
    found: dict[Size, list[Tensor]] = {size: [] for size in predictors}
    seconds: dict[Size, list[float]] = {size: [] for size in predictors}
    labels: list[Tensor] = []
    streams = zip(*(batches(trained, images, size) for size in predictors), strict=True)
    total = -(-len(images) // trained.recipe.evaluate.batch_size)
    shown = track(streams, "running each size", total=total, transient=True, disable=not rich.get_console().is_terminal)
    for number, views in enumerate(shown):
        labels.append(views[0].targets.of(0).cpu())
        for size, batch in zip(predictors, views, strict=True):
            logits, spent = run_stage(predictors[size], batch.views[0])
            if number == 0:  # it built the engine
                _, spent = run_stage(predictors[size], batch.views[0])
            found[size].append(logits)
            seconds[size].append(spent)
    target = torch.cat(labels)
    return {size: Stage(torch.cat(found[size]), sum(seconds[size]) / len(target)) for size in predictors}, target


def run_stage(predictor: Predictor, pixels: Tensor) -> tuple[Tensor, float]:
    """Logits (b, k) of normalized pixels, on the CPU, and the seconds that they took."""
    start = time.perf_counter()
    logits = predictor.forward(pixels).cpu()
    return logits, time.perf_counter() - start


def batches(trained: TrainedModel, images: DecodedImages, size: Size) -> Iterator[Batch]:
    """The held-out images at ``size``, prepared as in evaluation."""
    return scored_batches(trained.recipe, trained.task, images, size, trained.device)


def measure(
    trained: TrainedModel, images: DecodedImages, predictors: Mapping[Size, Predictor], cascade: Cascade
) -> CascadeResult:
    """The cascade and its largest size alone, in turn on every batch of the half that did not choose."""
    runner = CascadePredictor([predictors[size] for size in cascade.parsed], cascade)
    alone = predictors[cascade.parsed[-1]]
    streams = [batches(trained, images, size) for size in cascade.parsed]
    rights, rights_alone, seconds, seconds_alone, first = [], [], 0.0, 0.0, 0
    for i, views in enumerate(zip(*streams, strict=True)):
        kept = (torch.arange(len(views[0].index)) + first) % 2 == 1
        first += len(kept)
        pixels = [batch.views[0][kept] for batch in views]
        if not len(pixels[0]):
            continue
        if i == 0:  # engines for the smaller batches that stay open are built before time counts
            for predictor, view in zip(runner.stages, pixels, strict=True):
                for count in range(1, predictor.batch + 1):
                    predictor.forward(view[:count])
        start = time.perf_counter()
        probabilities = runner.forward(pixels)
        between = time.perf_counter()
        logits = alone.forward(pixels[-1])
        seconds, seconds_alone = seconds + between - start, seconds_alone + time.perf_counter() - between
        target = views[0].targets.of(0)[kept].cpu()
        rights.append(probabilities.argmax(1) == target)
        rights_alone.append(logits.cpu().argmax(1) == target)
    right, right_alone = torch.cat(rights), torch.cat(rights_alone)
    n = len(right)
    return CascadeResult(
        n,
        int(right.sum()),
        int(right_alone.sum()),
        int((right & ~right_alone).sum()),
        int((right_alone & ~right).sum()),
        seconds / n,
        seconds_alone / n,
        tuple(count / n for count in runner.answered),
    )


def cascade_point(trained: TrainedModel, cascade: Cascade, result: CascadeResult) -> SizeResult:
    """The cascade on the size curve, at its largest size, with the mean cost of an image."""
    low, high = wilson(result.right, result.n)
    reached = [sum(result.shares[stage:]) for stage in range(len(result.shares))]
    products = sum(share * macs(trained.model, size) for share, size in zip(reached, cascade.parsed, strict=True))
    top1 = result.right / result.n
    return _as_point("cascade", cascade.parsed[-1], top1, result.n, result.seconds, round(products), low, high)


def _point(trained: TrainedModel, size: Size, stage: Stage, target: Tensor, logits: Tensor) -> SizeResult:
    right = int((logits.argmax(1) == target).sum())
    low, high = wilson(right, len(target))
    products = macs(trained.model, size)
    return _as_point(trained.name, size, right / len(target), len(target), stage.seconds, products, low, high)


def _as_point(
    name: str, size: Size, top1: float, n: int, seconds: float, products: int, low: float, high: float
) -> SizeResult:
    cost = Cost(1000 * seconds, 1 / seconds, products)
    return SizeResult(name, size, {TOP1.key: Estimate(top1, low, high)}, (TOP1,), n, cost)
