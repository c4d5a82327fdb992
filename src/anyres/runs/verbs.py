"""What the command line does with a finished run, or with weights: score, draw the curve, pick a size, predict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32, UInt8
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable, decode
from anyres.data.mix import normalise
from anyres.data.views import eval_view
from anyres.deploy.predictor import EngineOptions, Prediction, likeliest
from anyres.evaluation.curve import pick, read_csv
from anyres.evaluation.probe import Pooled, ProbeConfig, Probed, digest, keep, kept, knn, linear
from anyres.evaluation.report import probe_table
from anyres.flow import Batch, Record, Size, parse_sizes
from anyres.models.index import known_weights
from anyres.runs.cascade import open_cascade, predictor_for
from anyres.runs.opened import (
    UNTRAINED,
    Trained,
    crop_ratio,
    evaluated_sizes,
    labelled_for,
    one_label_each,
    open_images,
    open_trained,
    seen_as,
)
from anyres.runs.report import (
    evaluation,
    folder_for,
    messages,
    pixels_of,
    report_on,
    said_of,
    screen,
    show,
    write_json,
    write_mistakes,
)

AT_A_TIME = 64  # pictures that are decoded before they are answered


class Subject(NamedTuple):
    """What the command line calls the model to be measured: MODEL|RUN, --weights, --classes."""

    what: str
    weights: str | None = None
    classes: Path | None = None

    def open(self) -> Trained:
        """The model itself; that it has learnt nothing is said on stderr."""
        trained = open_trained(*self)
        if trained.weights == UNTRAINED:
            messages().print(f"{trained.name} is as it was initialised: it has learnt nothing")
        return trained


class Where(NamedTuple):
    """The images to measure on: --data, --split."""

    data: str | None = None
    split: str | None = None


def evaluate_run(
    subject: Subject, where: Where, sizes: Sequence[str] | None, into: Path | None = None, out: Path | None = None
) -> None:
    """Print accuracy and cost of a model at ``sizes``, its recipe's if none are given, and what it was claimed to be.

    ``into``: the same as JSON in that file, or instead of the table on stdout if it is ``-``. ``out``: a folder for the
    accuracy of every class and the confusion matrix.
    """
    wanted = parse_sizes(sizes) if sizes else None
    trained = subject.open()
    images = trained.images(*where)
    measured = trained.measure(images, wanted or evaluated_sizes(trained.recipe))
    tell(images)
    if str(into) == "-":
        print(json.dumps(evaluation(trained, images, measured), indent=1))
    else:
        show(trained, images, measured)
    written = write_mistakes(trained, images, measured, out) if out else []
    if into is not None and str(into) != "-":
        write_json(evaluation(trained, images, measured), into)
        written.append(into)
    if written:
        messages().print(f"written: {', '.join(map(str, written))}")


def curve_run(subject: Subject, where: Where, sizes: Sequence[str], out: Path | None = None) -> None:
    """Measure a model at ``sizes``; writes ``curve.csv``, ``curve.png`` and ``report.html`` in ``out`` or its run."""
    wanted = parse_sizes(sizes)
    trained = subject.open()
    folder = folder_for(trained, out)
    images = trained.images(*where)
    report_on(trained, images, wanted, folder)
    tell(images)
    screen().print(
        f"written: {folder / 'curve.csv'}, {folder / 'curve.png'}, {folder / 'report.html'}",
        markup=False,
        soft_wrap=True,
    )


class Probes(NamedTuple):
    """Which probes: --knn, --linear (both if neither is given), how, and the folder to keep features in."""

    knn: bool
    linear: bool
    how: ProbeConfig
    keep: Path | None = None


def probe_run(subject: Subject, where: Where, size: str | None, probes: Probes, into: Path | None = None) -> None:
    """Print what a model's frozen features are worth on the held-out images; ``into`` as in ``evaluate_run``."""
    wanted = Size.parse(size) if size else None
    trained = subject.open()
    wanted, how = wanted or trained.recipe.views.parsed[0], probes.how
    train, test = probed_images(trained, where)
    classes = len(train.source.classes)
    bank, asked = (pooled(trained, images, wanted, probes.keep) for images in (train, test))
    for images in (train, test):
        tell(images)
    found = knn(bank, asked, classes, how.k, trained.device) if probes.knn or not probes.linear else []
    if probes.linear or not probes.knn:
        found.append(linear(bank, asked, classes, how, trained.device, watched("training the linear probe")))
    if str(into) == "-":
        print(json.dumps(probe_facts(trained, train, test, wanted, found), indent=1))
        return
    screen().print(probe_table(found))
    row = next((row for row in known_weights() if row.name == trained.name), None)
    told = [f"{row.knn} % by k-NN" if row and row.knn else "", f"{row.linear} % linear" if row and row.linear else ""]
    sentences = (
        [f"published on ImageNet-1k: {', '.join(filter(None, told))} ({row.source})"] if row and any(told) else []
    )
    counts = f"{len(bank.target)} training and {len(asked.target)} held-out images of {classes} classes"
    for sentence in (*sentences, f"{counts}, at {wanted} px", f"images are seen so: {seen_as(trained.recipe)}"):
        screen().print(sentence, markup=False, soft_wrap=True)
    if into is not None:
        write_json(probe_facts(trained, train, test, wanted, found), into)


def probed_images(trained: Trained, where: Where) -> tuple[DecodedImages, DecodedImages]:
    """The images whose labels are given, and those whose labels are asked for. Raises UserError if some are both."""
    test = open_images(trained.recipe, where.split or trained.recipe.data.eval_split, where.data, one_label_each)
    return labelled_for(trained.recipe, test), test


def pooled(trained: Trained, images: DecodedImages, size: Size, keep_in: Path | None) -> Pooled:
    """The features of ``images``, from ``keep_in`` if they lie there."""
    if keep_in is None:
        return trained.pooled(images, size)
    listed = "\n".join(f"{r.name} {r.target}" for r in images.source.records)
    about = {
        "model": f"{trained.recipe.model} {digest(trained.model)}",
        "set": hashlib.sha256(listed.encode()).hexdigest(),
        "way of seeing images": f"{seen_as(trained.recipe)} {pixels_of(trained, [size])}",
        "precision": f"{trained.device.type} {trained.autocast}",
    }
    path = keep_in / f"{images.source.split}_{size}.safetensors"
    found = kept(path, about)
    if found is None:
        found = trained.pooled(images, size)
        keep(found, path, about)
    return found


def probe_facts(
    trained: Trained, train: DecodedImages, test: DecodedImages, size: Size, found: Sequence[Probed]
) -> dict[str, Any]:
    """What was probed and what came out, as plain values for JSON."""
    return {
        "model": trained.name,
        "weights": trained.weights,
        "data": test.source.name,
        "train": {"split": train.source.split, "images": len(train)},
        "test": {"split": test.source.split, "images": len(test)},
        "classes": len(train.source.classes),
        "size": str(size),
        "seen": seen_as(trained.recipe),
        "fingerprint": asdict(pixels_of(trained, [size])),
        "probes": [asdict(one) for one in found],
    }


def watched(what: str) -> Callable[[range], Iterable[int]]:
    """A progress bar on stderr for rounds of work, where there is a terminal."""
    console = Console(stderr=True)
    return partial(track, description=what, console=console, transient=True, disable=not console.is_terminal)


def tell(images: DecodedImages) -> None:
    """Say what had to be done to read the images that were scored."""
    for sentence in (*images.source.notes, *said_of(images, images.source.split)):
        messages().print(sentence)


def pick_size(folder: Path, min_top1: float | None, max_ms: float | None) -> None:
    """Name the size of a measured run that does the job."""
    point = pick(read_csv(folder / "curve.csv"), min_top1, max_ms)
    size = Size(point.height, point.width)
    screen().print(
        f"{size}  {point.named.name} {100 * point.top1:.1f} %, {point.latency_ms:.2f} ms an image, "
        f"{point.macs / 1e6:.0f} M MACs"
    )


def probabilities(trained: Trained, image: UInt8[Tensor, "3 h w"], size: Size) -> Float32[Tensor, " k"]:
    """The class probabilities of one image seen at ``size``; each by itself where the model gives several labels."""
    view = eval_view(image, size, crop_ratio(trained.recipe), trained.recipe.evaluate.warp)
    batch = Batch((view[None],), torch.tensor([-1]), torch.tensor([0]))
    pixels = normalise(batch, trained.recipe.data.mean, trained.recipe.data.std, trained.device).views[0]
    with torch.inference_mode(), torch.autocast(trained.device.type, trained.autocast, trained.autocast is not None):
        logits: Tensor = trained.model(pixels)
    return (logits[0].float().sigmoid() if trained.multi_label else logits[0].float().softmax(0)).cpu()


class Answering(NamedTuple):
    """How pictures are answered: --size, --backend, --cascade, --threshold, --huge-pages."""

    size: Size | None = None
    backend: str | None = None
    cascade: bool = False
    threshold: float | None = None
    huge_pages: bool = False

    def answerer(self, trained: Trained, folder: Path) -> Callable[[Sequence[Tensor], int], list[list[Prediction]]]:
        """Pictures uint8 (3, h, w) and a count -> so many likeliest classes of each; of a model that gives several
        labels, all that are likely enough."""
        size = self.size or trained.recipe.views.parsed[0]
        how = EngineOptions(self.backend or "eager", batch=1, huge_pages=self.huge_pages)
        if self.cascade:
            return open_cascade(trained, folder, how).predict

        def plain(pictures: Sequence[Tensor], top: int) -> list[list[Prediction]]:
            shares = torch.stack([probabilities(trained, picture, size) for picture in pictures])
            return likeliest(shares, trained.classes, top)

        answer = predictor_for(trained, size, how).predict if self.backend else plain
        if not trained.multi_label:
            return answer
        least = 0.5 if self.threshold is None else self.threshold

        def several(pictures: Sequence[Tensor], _top: int) -> list[list[Prediction]]:
            every = answer(pictures, len(trained.classes))
            return [[one for one in row if one.probability > least] for row in every]

        return several


def predict_images(subject: Subject, paths: Sequence[Path], how: Answering, top: int) -> None:
    """Print the likeliest classes of image files, or all likely labels. Raises UserError that names the unreadable
    ones, after the others."""
    trained = subject.open()
    if not trained.names:
        raise UserError(f"{trained.name} has no classifier: it cannot name classes")
    if trained.multi_label and how.cascade:
        raise UserError(f"{trained.name} gives several labels: a cascade wants one class an image, leave out --cascade")
    if how.threshold is not None and not trained.multi_label:
        raise UserError(f"{trained.name} gives one class an image: --threshold is for several, leave it out")
    predict = how.answerer(trained, Path(subject.what))
    table = Table(box=None, header_style="bold", pad_edge=False)
    places = [f"{i + 1}." for i in range(min(top, len(trained.classes)))]
    for column in ("image", *(["labels"] if trained.multi_label else places)):
        table.add_column(column, overflow="fold")
    unreadable = []
    for start in range(0, len(paths), AT_A_TIME):
        pictures: dict[Path, Tensor] = {}
        for path in paths[start : start + AT_A_TIME]:
            try:
                pictures[path] = decode(Record(path, -1, str(path))).image
            except Unreadable as error:
                unreadable.append(f"{error.name} is unreadable: {error.reason}")
        answers = predict(list(pictures.values()), top) if pictures else []
        for path, best in zip(pictures, answers, strict=True):
            told = [f"{one.name} {100 * one.probability:.1f} %" for one in best]
            told = [", ".join(told) or "nothing"] if trained.multi_label else told
            table.add_row(*map(escape, (str(path), *told)))
    if table.rows:
        screen().print(table)
    if unreadable:
        raise UserError("; ".join(unreadable))
