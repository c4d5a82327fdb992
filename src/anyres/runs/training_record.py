"""What a report shows of the training: the curves of ``metrics.jsonl``, and a sheet of views as the model saw them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from anyres.config import UserError
from anyres.evaluation.page import Chart, Line, Sheet
from anyres.flow import Batch, Metric
from anyres.recipe import Recipe
from anyres.runs.kept import kept_in
from anyres.runs.opened import TrainedModel
from anyres.storage import read_bytes, write_bytes

log = logging.getLogger(__name__)
METRICS, VIEWS = "metrics.jsonl", "views.jpg"
MOST_BYTES = 1 << 30
MOST_POINTS = 160
"""Of a line; more are means of their neighbors."""
SHOWN, ROWS, SIDE, GAP = 8, 6, 176, 8
"""Of the sheet: images, views of each, the largest view's longer side and the gaps in pixels."""
GROUND = (38, 44, 52)


def charts_of(trained: TrainedModel) -> list[Chart]:
    """Loss and scores of a run against its epochs; [] where it is none, or has no record."""
    per_epoch = _steps_per_epoch(trained)
    if trained.folder is None or not per_epoch:
        return []
    kept = kept_in(trained.facts)
    records = _records(trained.folder / METRICS)
    metric = trained.task.metrics[0]
    loss = [((r["step"] + 1) / per_epoch, r["loss"]) for r in records if "loss" in r]
    charts = [Chart("Loss", [Line("training", _thinned(loss))])] if loss else []
    if scored := _scored(records, metric, per_epoch):
        charts.append(
            Chart(f"Held-out {metric.name} {metric.unit}".rstrip(), scored, metric.unit, kept.epoch if kept else None)
        )
    return charts


def _scored(records: list[dict[str, float]], metric: Metric, per_epoch: float) -> list[Line]:
    """The mean over sizes, where there are several, and each size."""
    head = f"val/{metric.key}"
    keys = [key for key in (records[-1] if records else {}) if key.startswith(f"{head}/")]
    named = [(f"{key.removeprefix(f'{head}/')} px", key) for key in keys]
    if len(named) != 1:
        named.insert(0, ("mean of the sizes" if named else metric.name, head))
    lines = []
    for name, key in named:
        points = [((r["step"] + 1) / per_epoch, metric.scale * r[key]) for r in records if key in r]
        if points:
            lines.append(Line(name, _thinned(points)))
    return lines


def _steps_per_epoch(trained: TrainedModel) -> float:
    """0 where the run does not say."""
    kept, steps = kept_in(trained.facts), trained.facts.get("steps", 0)
    if kept is not None:
        return kept.last / kept.last_epoch if kept.last_epoch else 0.0
    return float(steps) / trained.recipe.train.epochs


def _records(path: Path) -> list[dict[str, float]]:
    """The lines that can be read, with the numbers that are finite."""
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8", "replace")
    except (OSError, UserError):
        return []
    found = []
    for line in text.splitlines():
        try:
            values: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            finite = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
            found.append(finite)
    return found


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them, each the mean of its neighbors."""
    share = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + share] for i in range(0, len(points), share)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def sheet_of(trained: TrainedModel) -> Sheet | None:
    """The sheet that the run's first step left; None where there is none."""
    if trained.folder is None or not (trained.folder / VIEWS).is_file():
        return None
    try:
        content = read_bytes(trained.folder / VIEWS, MOST_BYTES)
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.verify()
    except (OSError, ValueError, UserError, SyntaxError):
        return None
    sizes = ", ".join(map(str, trained.recipe.views.sizes[:ROWS]))
    lead = (
        f"Images of the first training step, one a column, after augmentation, erasing and mixing: {sizes} px from the "
        "top."
    )
    return Sheet(content, lead, f"Augmented training images at {sizes} px.")


def showing_first(batches: Generator[Batch], recipe: Recipe, path: Path) -> Generator[Batch]:
    """The same batches; of the first one a sheet is written to ``path``, where the disk lets it."""
    with contextlib.closing(batches):
        for number, batch in enumerate(batches):
            if number == 0:
                try:
                    write_bytes(path, contact_sheet(batch.views[:ROWS], recipe))
                except OSError as error:
                    log.warning("%s cannot be written: %s", path, error.strerror or error)
            yield batch


def contact_sheet(views: Iterable[Float[Tensor, "b c _ _"]], recipe: Recipe) -> bytes:
    """Normalized views -> a JPEG with an image in each column, and its views from top to bottom."""
    rows = [[_pixels(one, recipe) for one in view[:SHOWN]] for view in views]
    largest = max(max(image.size) for row in rows for image in row)
    scale = min(1.0, SIDE / largest)
    small = [
        [image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height)))) for image in row]
        for row in rows
    ]
    width = max(image.width for row in small for image in row)
    heights = [max(image.height for image in row) for row in small]
    sheet = Image.new("RGB", (len(small[0]) * (width + GAP) + GAP, sum(heights) + GAP * (len(heights) + 1)), GROUND)
    top = GAP
    for row, height in zip(small, heights, strict=True):
        for i, image in enumerate(row):
            sheet.paste(image, (GAP + i * (width + GAP) + (width - image.width) // 2, top))
        top += height + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def _pixels(view: Float[Tensor, "c h w"], recipe: Recipe) -> Image.Image:
    """One normalized view as a picture; of many bands the first three, of two the first."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.data.mean, recipe.data.std))
    bands: UInt8[Tensor, "c h w"] = ((view.detach().float().cpu() * std + mean) * 255).round().clamp(0, 255).byte()
    bands = bands[:3] if len(bands) >= 3 else bands[:1].expand(3, -1, -1)
    return Image.fromarray(bands.permute(1, 2, 0).contiguous().numpy())  # (h, w, 3)
