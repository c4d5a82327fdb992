"""What the command line does with a finished run, or with weights: score, draw the curve, pick a size, predict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float32, UInt8
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable, decode
from anyres.data.mix import normalise
from anyres.data.views import eval_view
from anyres.evaluate.curve import pick, read_csv
from anyres.flow import Batch, Record, Size, parse_sizes
from anyres.publish import (
    evaluation,
    folder_for,
    messages,
    report_on,
    said_of,
    screen,
    show,
    write_json,
    write_mistakes,
)
from anyres.trained import UNTRAINED, Trained, crop_ratio, evaluated_sizes, open_trained


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


def tell(images: DecodedImages) -> None:
    """Say what had to be done to read the images that were scored."""
    for sentence in (*images.source.notes, *said_of(images, images.source.split)):
        messages().print(sentence)


def pick_size(folder: Path, min_top1: float | None, max_ms: float | None) -> None:
    """Name the size of a measured run that does the job."""
    point = pick(read_csv(folder / "curve.csv"), min_top1, max_ms)
    size = Size(point.height, point.width)
    screen().print(
        f"{size}  top-1 {100 * point.top1:.1f} %, {point.latency_ms:.2f} ms an image, {point.macs / 1e6:.0f} M MACs"
    )


def probabilities(trained: Trained, image: UInt8[Tensor, "3 h w"], size: Size) -> Float32[Tensor, " k"]:
    """The class probabilities of one image seen at ``size``."""
    view = eval_view(image, size, crop_ratio(trained.recipe), trained.recipe.evaluate.warp)
    batch = Batch((view[None],), torch.tensor([-1]), torch.tensor([0]))
    pixels = normalise(batch, trained.recipe.data.mean, trained.recipe.data.std, trained.device).views[0]
    with torch.inference_mode(), torch.autocast(trained.device.type, trained.autocast, trained.autocast is not None):
        logits: Tensor = trained.model(pixels)
    return logits[0].float().softmax(0).cpu()


def predict_images(subject: Subject, paths: Sequence[Path], size: str | None, top: int) -> None:
    """Print the likeliest classes of image files. Raises UserError that names the unreadable ones, after the others."""
    wanted = Size.parse(size) if size else None
    trained = subject.open()
    if not trained.names:
        raise UserError(f"{trained.name} has no classifier: it cannot name classes")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("image", *(f"{i + 1}." for i in range(min(top, len(trained.classes))))):
        table.add_column(column, overflow="fold")
    unreadable = []
    for path in paths:
        try:
            image = decode(Record(path, -1, str(path))).image
        except Unreadable as error:
            unreadable.append(f"{error.name} is unreadable: {error.reason}")
            continue
        best = probabilities(trained, image, wanted or trained.recipe.views.parsed[0]).topk(len(table.columns) - 1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        table.add_row(escape(str(path)), *(escape(f"{trained.classes[i]} {100 * share:.1f} %") for i, share in pairs))
    if table.rows:
        screen().print(table)
    if unreadable:
        raise UserError("; ".join(unreadable))
