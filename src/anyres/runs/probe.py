"""What a model's frozen features are worth: nearest neighbors and a linear classifier on labelled images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import get_console
from rich.progress import track

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.sources import Source
from anyres.evaluation.probe import Pooled, ProbeConfig, Probed, keep, kept, knn, linear
from anyres.flow import Size
from anyres.models.index import known_weights
from anyres.models.state_files import digest_of
from anyres.runs.inputs import describe_preprocessing, open_images, reference_images
from anyres.runs.opened import DataSpec, TrainedModel
from anyres.runs.report import pixels_of


@dataclass(frozen=True)
class ProbeOptions:
    """Which probes (both if neither is asked for), how they are made, and a folder to keep features in."""

    knn: bool
    linear: bool
    how: ProbeConfig
    keep: Path | None = None


@dataclass(frozen=True)
class ProbeResult:
    """``found``: one row for each probe; ``train`` and ``test``: the images they were asked with, at ``size``;
    ``learnt_from``: how many of ``train`` could be read and have a label."""

    model: TrainedModel
    train: DecodedImages
    test: DecodedImages
    size: Size
    found: tuple[Probed, ...]
    learnt_from: int

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary of plain values for each probe."""
        return [asdict(one) for one in self.found]

    def facts(self) -> dict[str, Any]:
        """What was probed and what came out, as plain values for JSON."""
        return {
            "model": self.model.name,
            "weights": self.model.weights,
            "data": self.test.source.name,
            "train": {"split": self.train.source.split, "images": len(self.train)},
            "test": {"split": self.test.source.split, "images": len(self.test)},
            "classes": len(self.train.source.classes),
            "size": str(self.size),
            "seen": describe_preprocessing(self.model.recipe, [self.size]),
            "fingerprint": asdict(pixels_of(self.model, [self.size])),
            "probes": self.rows(),
        }

    def summary(self) -> list[str]:
        """Below the table, for people."""
        row = next((row for row in known_weights() if row.name == self.model.name), None)
        published = [f"{row.knn} % by k-NN"] if row and row.knn else []
        published += [f"{row.linear} % linear"] if row and row.linear else []
        sentences = [f"published on ImageNet-1k: {', '.join(published)} ({row.source})"] if row and published else []
        counts = f"{self.learnt_from} training and {self.found[0].n} held-out images"
        return [
            *sentences,
            f"{counts} of {len(self.train.source.classes)} classes, at {self.size} px",
            f"preprocessing: {describe_preprocessing(self.model.recipe, [self.size])}",
        ]


def probe(trained: TrainedModel, where: DataSpec, size: Size | None, options: ProbeOptions) -> ProbeResult:
    """Probe a model's features at ``size`` (None: the largest it was trained at). Raises UserError."""
    size, how = size or trained.recipe.views.parsed[0], options.how
    trained.model.check_sizes([size])
    train, test = probed_images(trained, where)
    classes = len(train.source.classes)
    bank, asked = (pooled(trained, images, size, options.keep) for images in (train, test))
    found = knn(bank, asked, classes, how.k, trained.device) if options.knn or not options.linear else []
    if options.linear or not options.knn:
        found.append(linear(bank, asked, classes, how, trained.device, watched("training the linear probe")))
    return ProbeResult(trained, train, test, size, tuple(found), len(bank.target))


def probed_images(trained: TrainedModel, where: DataSpec) -> tuple[DecodedImages, DecodedImages]:
    """The images whose labels are given, and those whose labels are asked for. Raises UserError if some are both."""
    split = where.split or trained.recipe.data.eval_split
    test = open_images(trained.recipe, split, where.data, fit=one_label_each)
    return reference_images(trained.recipe, test), test


def one_label_each(source: Source) -> Source:
    """``source``, for whom neighbors or a linear layer answer by one class. Raises UserError for several labels."""
    if source.labelling != "one":
        raise UserError(f"images of {source.name} have several labels: nearest neighbours and probes want one each")
    return source


def pooled(trained: TrainedModel, images: DecodedImages, size: Size, keep_in: Path | None) -> Pooled:
    """The features of ``images``, from ``keep_in`` if they lie there."""
    if keep_in is None:
        return trained.pooled(images, size)
    listed = "\n".join(f"{r.name} {r.target}" for r in images.source.records)
    about = {
        "model": f"{trained.recipe.model} {digest_of(trained.model.state_dict())[:16]}",
        "set": hashlib.sha256(listed.encode()).hexdigest(),
        "preprocessing": f"{describe_preprocessing(trained.recipe, [size])} {pixels_of(trained, [size])}",
        "precision": f"{trained.device.type} {trained.autocast}",
    }
    path = keep_in / f"{images.source.split}_{size}.safetensors"
    found = kept(path, about)
    if found is None:
        found = trained.pooled(images, size)
        keep(found, path, about)
    return found


def watched(what: str) -> Callable[[range], Iterable[int]]:
    """A progress bar for rounds of work, where there is a terminal."""
    return partial(track, description=what, transient=True, disable=not get_console().is_terminal)
