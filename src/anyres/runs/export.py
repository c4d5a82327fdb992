"""A finished run, or weights, as files that other programs run: the size dial and a certificate inside."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import resources
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import torch

from anyres.config import UserError, first_line, need
from anyres.data.decode import Unreadable, decode
from anyres.deploy.export.certificate import Pictures, Referee
from anyres.deploy.export.dial import LARGEST, Preparation
from anyres.deploy.export.files import EXTERNAL_FROM
from anyres.deploy.export.subject import Calibration, Subject
from anyres.deploy.export.write import Exported, Format, check_place, parse_format, write
from anyres.evaluation.curve_file import read_csv
from anyres.evaluation.measured import MEASURED
from anyres.flow import Record, Size, SizeResult, parse_sizes
from anyres.runs.cascade import calibration
from anyres.runs.drift import held_out_of
from anyres.runs.inputs import crop_ratio, describe_preprocessing, evaluated_sizes, interpolation_of
from anyres.runs.opened import DataSpec, Model, TrainedModel, open_model
from anyres.runs.stderr import doing, show_log
from anyres.storage import as_path

log = logging.getLogger(__name__)

NEEDS: dict[Format, tuple[str, ...]] = {
    "safetensors": (),
    "torch": (),
    "executorch": ("executorch",),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}
"""Packages of formats; of all others they are those of ONNX."""
COUNTED = 32
"""Real images on which a file and its model are compared."""
COUNTED_INT8 = 96
"""The same of int8, whose answers differ."""
MOST_SIZES = 6
"""At which int8 is measured, beside the best one: of more, every second or third."""
SHORT_SIDE = 480  # pixels of these images: a larger one is no better witness, and takes long
SAMPLE = "fingerprint.jpg"


def export(
    model: Model,
    path: str | Path,
    to: str = "onnx",
    *,
    sizes: Sequence[str | int | Size] = (),
    data: str | None = None,
    int8: bool = False,
) -> Exported:
    """Write a model as a file that other programs run, and check it against the model before it appears.

    ``model``: see ``Model``. ``path``: the file, or, of triton and web, the folder. ``to``: ``onnx`` (inputs
    ``image`` uint8 (b, h, w, c) and ``size`` int64 (2,), height and width in pixels; output ``probabilities`` float32
    (b, k); every dimension free), ``openvino``, ``executorch``, ``torch``, ``safetensors``, ``triton`` or ``web`` (a
    page that runs the ONNX file in a browser). ``sizes``: for each of them a further file that sees this size alone and
    is faster there; of executorch such files alone. ``data``: the images to check with (the run's held-out ones; where
    there are none, a picture of this package). ``int8``: of onnx and triton, products in int8, ranges read
    from the run's training images at the sizes of its curve; the certificate says what that costs at each size.

    Returns an Exported: ``.files``, and ``.certificates`` by file name. Raises UserError, also where a file does not
    answer as its model does; then nothing is left behind.
    """
    show_log()
    wanted = parse_format(to)
    for package in NEEDS.get(wanted, ("onnx", "onnxscript", "onnxruntime")):
        need(package, extra="edge" if package == "executorch" else "deploy", purpose=f"exporting to {wanted}")
    place, fixed = as_path(path), _fixed(sizes)
    check_place(place, wanted, fixed)
    if int8 and wanted not in ("onnx", "triton"):
        raise UserError(f"--int8 is for onnx, which OpenVINO reads too, and triton, not for {wanted}: leave it out")
    return write(subject_of(open_model(model), data, int8=int8), place, wanted, fixed)


def subject_of(trained: TrainedModel, data: str | None = None, *, int8: bool = False) -> Subject:
    """A trained model with all that is written and checked. Raises UserError."""
    if not trained.model.num_classes:
        raise UserError(f"{trained.name} has no classifier, so a file of it would answer nothing: train one first")
    recipe = trained.recipe
    model = copy.deepcopy(trained.backbone).cpu().float().eval().requires_grad_(False)
    how = Preparation(
        tuple(recipe.data.mean),
        tuple(recipe.data.std),
        crop_ratio(recipe),
        recipe.evaluate.warp,
        "bilinear" if interpolation_of(recipe) == "bilinear" else "bicubic",
    )
    activation = trained.task.activation
    sizes = tried_sizes(recipe.views.parsed[0])
    with doing("reading images to check with"):
        pictures = _pictures(trained, data)
    about = {"model": recipe.model, "mean": recipe.data.mean, "std": recipe.data.std, **trained.task.about()}
    curve = _curve(trained)
    said = _said(trained, curve)
    calibration = _calibration(trained, curve, data) if int8 else None
    referee = Referee(model, how, activation)
    return Subject(trained.name, referee, sizes, pictures, said, curve, about, calibration, doing)


def _calibration(trained: TrainedModel, curve: Sequence[SizeResult], data: str | None) -> Calibration:
    """Training images for ranges, the sizes of the curve, and held-out images to be compared on. Raises UserError."""
    recipe = trained.recipe
    if trained.task.activation == "none":
        raise UserError(f"{trained.name} names no classes, so what int8 costs cannot be said: leave --int8 out")
    if trained.folder is None or recipe.data.source is None:
        raise UserError(
            f"--int8 reads its ranges from a run's training images, and {trained.name} is no run: leave it out"
        )
    if sum(each.nbytes for each in trained.backbone.state_dict().values()) >= EXTERNAL_FROM:
        raise UserError(f"{trained.name} has more weights than int8 is made of here (1.8 GB): leave --int8 out")
    sizes = [each.size for each in curve] or [*recipe.views.parsed, *evaluated_sizes(recipe)]
    ordered = sorted(set(sizes), key=lambda size: size.height * size.width)
    spread = ordered[:: -max(1, -(-len(ordered) // MOST_SIZES))]
    best = [max(curve, key=lambda result: result.quality).size] if curve else []
    chosen = [size for size in ordered if size in (*spread, *best)]
    with doing("reading images for int8"):
        images = [each for each in calibration(trained, "onnxruntime:int8") if isinstance(each, torch.Tensor)]
        return Calibration(images, chosen, _pictures(trained, data, COUNTED_INT8))


def tried_sizes(usual: Size) -> tuple[Size, ...]:
    """Where a file is tried: at its usual size, at half of it, and at two that are multiples of nothing."""
    height, width = usual
    half = Size(max(2, height // 2), max(2, width // 2))
    tall = Size(_odd(1.13 * height), _odd(0.71 * width))
    wide = Size(_odd(0.59 * height), _odd(1.37 * width))
    return tuple(dict.fromkeys((usual, half, tall, wide)))


def _odd(side: float) -> int:
    """The next prime number."""
    return next(n for n in count(max(2, round(side))) if all(n % k for k in range(2, int(n**0.5) + 1)))


def _fixed(sizes: Sequence[str | int | Size]) -> tuple[Size, ...]:
    texts = [f"{size.height}x{size.width}" if isinstance(size, Size) else str(size) for size in sizes]
    fixed = tuple(dict.fromkeys(parse_sizes(texts))) if texts else ()
    for size in fixed:
        if not 2 <= min(size) <= max(size) <= LARGEST:
            raise UserError(f"--sizes {size}: a file is made for 2 to {LARGEST} px a side: give another")
    return fixed


def _pictures(trained: TrainedModel, data: str | None, most: int = COUNTED) -> Pictures:
    """The first readable images of what the model is scored on; without any, the package's own."""
    if data is not None or (trained.folder is not None and not trained.task.compares):
        try:
            images = trained.images(DataSpec(data))
            found = list(_readable(images.source.records, len(trained.recipe.data.mean), most))
        except (UserError, OSError) as error:
            if data is not None:
                raise
            log.warning(
                "the run's images cannot be read (%s): the file is checked with the package's own picture",
                first_line(error),
            )
            found = []
        if found:
            shown, classes = zip(*found, strict=True)
            return Pictures(shown, classes, f"{len(shown)} images of {images.source.name} ({images.source.split})")
        if data is not None:
            raise UserError(f"--data {data} has no image that can be read: give others")
    channels = len(trained.recipe.data.mean)
    content = resources.files("anyres.evaluation").joinpath(SAMPLE).read_bytes()
    image = decode(Record(content, -1, SAMPLE), channels=channels).image if channels <= 4 else _noise(channels)
    turned = [image, image.flip(2), image[:, :, 30:], image[:, 40:, :150]]
    return Pictures(turned, [-1] * len(turned), "4 cuts of the package's own picture")


def _readable(records: Sequence[Record], channels: int, most: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Some images evenly spread over all, with their class, -1 where there is none."""
    spread = range(0, len(records), max(1, len(records) // most))
    for place in list(spread)[:most]:
        record = records[place]
        with suppress(Unreadable):
            image = decode(record, SHORT_SIDE, channels=channels).image
            yield image, record.target if isinstance(record.target, int) else -1


def _noise(channels: int) -> torch.Tensor:
    """A picture of so many channels, which no photo has."""
    drawn = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (channels, 180, 240), generator=drawn, dtype=torch.uint8)


def _said(trained: TrainedModel, curve: Sequence[SizeResult]) -> dict[str, Any]:
    """What stands in the file, by key."""
    recipe = trained.recipe
    sizes = {
        "order": "height, width; pixels",
        "usual": list(recipe.views.parsed[0]),
        "trained": [list(size) for size in recipe.views.parsed],
        "evaluated": [list(size) for size in evaluated_sizes(recipe)],
        "least": 2,
        "most": LARGEST,
    }
    preprocessing = {
        "input": "uint8 RGB, upright, whole image; the file resizes, crops and normalizes",
        "does": describe_preprocessing(recipe),
        "mean": list(recipe.data.mean),
        "std": list(recipe.data.std),
        "crop": crop_ratio(recipe),
        "warp": recipe.evaluate.warp,
        "interpolation": interpolation_of(recipe),
    }
    provenance = {
        "model": dict(recipe.model),
        "weights": trained.weights,
        "learnt_from": trained.learnt_from,
        "task": trained.task.name,
        "activation": trained.task.activation,
        "anyres": version("anyres"),
        "torch": version("torch"),
    }
    said = {
        "classes": list(trained.classes),
        "sizes": sizes,
        "preprocessing": preprocessing,
        "provenance": provenance,
        "curve": [{key: _finite(value) for key, value in each.row().items()} for each in curve],
        "held_out": held_out.plain() if (held_out := held_out_of(trained)) else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(said, default=str))
    return plain


def _curve(trained: TrainedModel) -> list[SizeResult]:
    """The run's measured curve; [] where none was measured."""
    path = trained.folder / "curve.csv" if trained.folder else None
    if path is None or not path.is_file():
        return []
    try:
        return read_csv(path, MEASURED)
    except UserError as error:
        log.warning("%s: the file goes without a curve", error)
        return []


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
