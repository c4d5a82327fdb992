"""``anyres cascade``: choose one for a run on one half of its held-out images, and measure it on the other half."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich import get_console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from anyres.cli.console import stdout as screen
from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable
from anyres.data.sources import open_source
from anyres.deploy.cascade import Cascade, CascadePredictor, choose
from anyres.deploy.engines.backend import Choice
from anyres.deploy.predictor import Picture, Predictor, Seen
from anyres.evaluation.metrics import wilson
from anyres.evaluation.plots.curve import plot
from anyres.evaluation.speed import macs
from anyres.flow import Batch, Cost, Estimate, Size, SizeResult
from anyres.runs.inputs import crop_ratio, scored_batches
from anyres.runs.opened import DataSpec, TrainedModel, open_run
from anyres.tasks.classify import TOP1

log = logging.getLogger(__name__)
FILE, PICTURE = "cascade.json", "cascade.png"
CALIBRATION = 128
"""So many training images show int8 its ranges."""


@dataclass(frozen=True)
class EngineOptions:
    """Engine with its precision, and batch, of every look: see Predictor."""

    backend: str = "auto"
    batch: int = 8


@dataclass(frozen=True)
class Look:
    """One size on all held-out images: logits (n, k) by place, and seconds of the model for one image."""

    logits: Tensor
    seconds: float


def choose_cascade(
    folder: Path, sizes: Sequence[Size], max_loss: float, how: EngineOptions, data: str | None = None
) -> Cascade:
    """Choose, measure, tell, and keep it in the run ``folder`` with a picture. Raises UserError."""
    if max_loss < 0:
        raise UserError(f"--max-loss {max_loss} is in points of top-1: give 0 or more, as 0.3")
    trained = open_run(folder)
    if trained.task.activation != "softmax":
        raise UserError(f"{folder} gives several labels: a cascade wants one class an image")
    images = trained.images(DataSpec(data))
    if len(images) < 20:
        raise UserError(f"{len(images)} held-out images are too few to choose with and to measure on: give --data more")
    predictors = predictors_for(trained, list(dict.fromkeys(sizes)), how)
    looks, target = look_at(trained, images, predictors)
    cascade = chosen(looks, target, max_loss)
    cascade.write(folder / FILE)
    measured = measure(trained, images, predictors, cascade)
    tell(cascade, measured, looks, target)
    points = [_point(trained, size, look, target[1::2], look.logits[1::2]) for size, look in looks.items()]
    plot([*points, measured.point(trained, cascade)], folder / PICTURE, f"{trained.name}: sizes and their cascade")
    log.info(f"kept in {folder / FILE}; {folder / PICTURE} shows it; `anyres predict {folder} IMAGE --cascade`")
    return cascade


def chosen(looks: Mapping[Size, Look], target: Tensor, max_loss: float) -> Cascade:
    """By every second image: the others are left to measure on."""
    logits = {size: look.logits[::2] for size, look in looks.items()}
    return choose(logits, target[::2], {size: look.seconds for size, look in looks.items()}, max_loss)


def predictor_for(trained: TrainedModel, size: Size, how: EngineOptions) -> Predictor:
    """The model at ``size``, seeing pictures as evaluation does. Raises UserError."""
    return Predictor(
        trained.model,
        how.backend,
        size,
        batch=how.batch,
        calibration=calibration(trained, how.backend),
        seen=seen_by(trained),
        names=trained.classes,
        multi_label=trained.task.activation == "sigmoid",
        say=log.info,
    )


def calibration(trained: TrainedModel, backend: str) -> list[Picture]:
    """Some of a run's training images, for int8; none for another precision. Raises UserError."""
    if backend == "auto" or Choice.parse(backend).precision != "int8":
        return []
    data = trained.recipe.data
    if trained.folder is None or data.source is None:
        raise UserError(
            f"{backend} reads its ranges from a run's training images, and {trained.name} is no run: use :bf16"
        )
    source = open_source(data.source, data.train_split, val_share=data.val_share, wanted="optional")
    images = DecodedImages(source, data.cache_side, budget_gib=0.0)
    found: list[Picture] = []
    for i in torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist():
        with suppress(Unreadable):
            found.append(images[i].image.contiguous())
        if len(found) == CALIBRATION:
            break
    return found


def predictors_for(trained: TrainedModel, sizes: Sequence[Size], how: EngineOptions) -> dict[Size, Predictor]:
    """One for each size, all of one engine: the idle threads of two would fight over the processors.

    Of the engines that ``auto`` measured at every size, the fastest over all sizes together.
    """
    made = {size: predictor_for(trained, size, how) for size in sizes}
    times = [{timing.choice: timing.ms for timing in predictor.timings} for predictor in made.values()]
    everywhere = set.intersection(*map(set, times))
    if len({predictor.choice for predictor in made.values()}) == 1 or not everywhere:
        return made
    best = min(everywhere, key=lambda choice: sum(each[choice] for each in times))
    log.info(f"one engine for all sizes of a cascade: {best}, the fastest over them together")
    return {size: predictor_for(trained, size, replace(how, backend=best)) for size in sizes}


def seen_by(trained: TrainedModel) -> Seen:
    """How its recipe shows it pictures."""
    data = trained.recipe.data
    return Seen(data.mean, data.std, crop_ratio(trained.recipe), trained.recipe.evaluate.warp)


def open_cascade(trained: TrainedModel, folder: Path, how: EngineOptions) -> CascadePredictor:
    """The run's kept cascade, ready for pictures. Raises UserError when there is none."""
    cascade = Cascade.read(folder / FILE)
    return CascadePredictor(list(predictors_for(trained, cascade.parsed, how).values()), cascade)


def look_at(
    trained: TrainedModel, images: DecodedImages, predictors: dict[Size, Predictor]
) -> tuple[dict[Size, Look], Tensor]:
    """Every readable image at every size; and the labels (n,)."""
    looks: dict[Size, Look] = {}
    target = torch.empty(0, dtype=torch.int64)
    console = get_console()
    for size, predictor in track(predictors.items(), "looking", disable=not console.is_terminal):
        logits, labels, spent, seen = [], [], 0.0, 0
        for i, batch in enumerate(batches(trained, images, size)):
            start = time.perf_counter()
            logits.append(predictor.forward(batch.views[0]).cpu())
            if i:  # the first one builds engines
                spent, seen = spent + time.perf_counter() - start, seen + len(batch.index)
            labels.append(batch.targets.of(0).cpu())
        if not seen:
            start = time.perf_counter()
            predictor.forward(batch.views[0])
            spent, seen = time.perf_counter() - start, len(batch.index)
        target = torch.cat(labels)
        looks[size] = Look(torch.cat(logits), spent / seen)
    return looks, target


def batches(trained: TrainedModel, images: DecodedImages, size: Size) -> Iterator[Batch]:
    """The held-out images at ``size``, as evaluation sees them."""
    return scored_batches(trained.recipe, trained.task, images, size, trained.device)


@dataclass(frozen=True)
class Measured:
    """On the other half: how many of ``n`` the cascade and the largest size alone have right, those which only one of
    them has, seconds for one image of each, and the shares of the images by the look that answers."""

    n: int
    right: int
    right_alone: int
    gained: int
    lost: int
    seconds: float
    seconds_alone: float
    shares: tuple[float, ...]

    def point(self, trained: TrainedModel, cascade: Cascade) -> SizeResult:
        """On the size curve, at its largest size, with the mean cost of an image."""
        low, high = wilson(self.right, self.n)
        reached = [sum(self.shares[look:]) for look in range(len(self.shares))]
        products = sum(share * macs(trained.model, size) for share, size in zip(reached, cascade.parsed, strict=True))
        return _as_point(
            "cascade", cascade.parsed[-1], self.right / self.n, self.n, self.seconds, round(products), low, high
        )


def measure(
    trained: TrainedModel, images: DecodedImages, predictors: dict[Size, Predictor], cascade: Cascade
) -> Measured:
    """The cascade and its largest size alone, in turn on every batch of the half that did not choose."""
    runner = CascadePredictor([predictors[size] for size in cascade.parsed], cascade)
    alone = predictors[cascade.parsed[-1]]
    streams = [batches(trained, images, size) for size in cascade.parsed]
    rights, rights_alone, seconds, seconds_alone, place = [], [], 0.0, 0.0, 0
    for i, views in enumerate(zip(*streams, strict=True)):
        kept = (torch.arange(len(views[0].index)) + place) % 2 == 1
        place += len(kept)
        pixels = [batch.views[0][kept] for batch in views]
        if not len(pixels[0]):
            continue
        if i == 0:  # engines for the smaller batches that stay open are built before time counts
            for predictor, view in zip(runner.looks, pixels, strict=True):
                for count in range(1, predictor.batch + 1):
                    predictor.forward(view[:count])
        start = time.perf_counter()
        shares = runner.forward(pixels)
        between = time.perf_counter()
        logits = alone.forward(pixels[-1])
        seconds, seconds_alone = seconds + between - start, seconds_alone + time.perf_counter() - between
        target = views[0].target[kept].cpu()
        rights.append(shares.argmax(1) == target)
        rights_alone.append(logits.cpu().argmax(1) == target)
    right, right_alone = torch.cat(rights), torch.cat(rights_alone)
    n = len(right)
    return Measured(
        n,
        int(right.sum()),
        int(right_alone.sum()),
        int((right & ~right_alone).sum()),
        int((right_alone & ~right).sum()),
        seconds / n,
        seconds_alone / n,
        tuple(count / n for count in runner.answered),
    )


def tell(cascade: Cascade, measured: Measured, looks: dict[Size, Look], target: Tensor) -> None:
    """Print the looks and what the cascade comes to."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("look", "answers from", "images", "ms an image", "top-1 alone"):
        table.add_column(column, justify="right")
    for i, size in enumerate(cascade.parsed):
        look = looks[size]
        table.add_row(
            f"{size} px",
            f"{100 * cascade.thresholds[i]:.1f} % sure" if i < len(cascade.thresholds) else "always",
            f"{100 * measured.shares[i]:.1f} %",
            f"{1000 * look.seconds:.2f}",
            f"{100 * (look.logits.argmax(1) == target).double().mean():.1f} %",
        )
    screen().print(table)
    top1, alone = (100 * right / measured.n for right in (measured.right, measured.right_alone))
    screen().print(
        f"on {measured.n} images that did not choose it: top-1 {top1:.2f} % against {alone:.2f} % of "
        f"{cascade.sizes[-1]} px alone ({measured.gained} gained, {measured.lost} lost), at "
        f"{measured.seconds_alone / measured.seconds:.2f} times its images/s"
    )


def _point(trained: TrainedModel, size: Size, look: Look, target: Tensor, logits: Tensor) -> SizeResult:
    right = int((logits.argmax(1) == target).sum())
    low, high = wilson(right, len(target))
    products = macs(trained.model, size)
    return _as_point(trained.name, size, right / len(target), len(target), look.seconds, products, low, high)


def _as_point(
    name: str, size: Size, top1: float, n: int, seconds: float, products: int, low: float, high: float
) -> SizeResult:
    cost = Cost(1000 * seconds, 1 / seconds, products)
    return SizeResult(name, size, {"top1": Estimate(top1, low, high)}, (TOP1,), n, cost)
