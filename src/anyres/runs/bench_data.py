"""``anyres bench data``: images/s of loading, stage by stage, which stage binds, and what to raise."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from anyres.cli.console import stdout as screen
from anyres.data.loader_profile import Loading, measure_loading
from anyres.recipe import Recipe
from anyres.runs.inputs import open_images
from anyres.runs.report import write_json

log = logging.getLogger(__name__)


def bench_data(data: str, recipe: Recipe, seconds: float, into: Path | None) -> None:
    """Measure loading ``data`` for training as ``recipe`` says; a table, or JSON where ``into`` is - or a file."""
    images = open_images(recipe, "train", data, training=True)
    loading = measure_loading(
        images,
        recipe.augment,
        recipe.views,
        batch_size=recipe.data.batch_size,
        workers=recipe.data.workers,
        seconds=seconds,
    )
    advice = list(advise(recipe, loading, len(images)))
    values = _values(data, recipe, loading, advice)
    if str(into) == "-":
        print(json.dumps(values, indent=1))
        return
    screen().print(_table(loading, f"{data}: {len(images)} images, views {recipe.views.told}"))
    screen().print(_summary(loading))
    for sentence in advice:
        screen().print(sentence)
    if into is not None:
        write_json(values, into)
        log.info(f"written: {into}")


def advise(recipe: Recipe, loading: Loading, count: int) -> Iterator[str]:
    """What would make loading faster, the surest first."""
    data = recipe.data
    if loading.workers < loading.processors:
        most = loading.per_core * loading.processors
        yield (
            f"data.workers={loading.processors} would load at most {most:.0f} images/s, if the model leaves "
            f"{loading.processors} processors to it"
        )
    if loading.bottleneck in ("read", "decode", "crop") and not loading.cached:
        side = max(max(size) for size in recipe.views.parsed) * 8 // 7
        gib = count * 3 * side * side * 4 / 3 / 2**30
        yield f"data.cache_side={side} data.cache_gib={math.ceil(gib)} keeps the images decoded in memory"
    if loading.bottleneck in ("decode", "crop") and loading.reducible > 0.1 and not data.dct:
        yield f"data.dct=true decodes {100 * loading.reducible:.0f} % of the images at a fraction (docs/data.md)"
    if loading.bottleneck == "colors":
        yield "fewer or smaller views, or fewer operations in augment.rand_augment (-n1), cost less colour"


def _values(data: str, recipe: Recipe, loading: Loading, advice: list[str]) -> dict[str, Any]:
    return {
        "data": data,
        "views": list(recipe.views.sizes),
        **asdict(loading),
        "images_per_s_per_core": loading.per_core,
        "binds": loading.bottleneck,
        "advice": advice,
    }


def _table(loading: Loading, title: str) -> Table:
    table = Table("stage", box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in ("ms an image", "images/s a core", "share"):
        table.add_column(column, justify="right")
    total = sum(loading.milliseconds.values())
    for stage, ms in [*loading.milliseconds.items(), ("all stages", total)]:
        table.add_row(stage, f"{ms:.3f}", f"{1e3 / ms:.0f}" if ms else "", f"{100 * ms / total:.0f} %")
    return table


def _summary(loading: Loading) -> str:
    processes = f"{loading.workers} worker processes" if loading.workers else "no worker process"
    return (
        f"whole loader: {loading.loader:.0f} images/s with {processes} on {loading.processors} processors; "
        f"{loading.bottleneck} binds"
    )
