"""Images/s of loading, stage by stage, the stage that limits it, and what to raise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from anyres.data.loader_profile import Loading, measure_loading
from anyres.recipe import Recipe
from anyres.runs.inputs import open_images


@dataclass(frozen=True)
class LoadingReport:
    """How fast a dataset loads for training."""

    data: str  # as the user named it
    views: tuple[str, ...]  # sizes of the views, as the recipe writes them
    title: str  # what was measured, in one line
    loading: Loading  # the measurement
    advice: tuple[str, ...]  # what would make loading faster, the most certain first

    def facts(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "data": self.data,
            "views": list(self.views),
            **asdict(self.loading),
            "images_per_s_per_core": self.loading.per_core,
            "binds": self.loading.bottleneck,
            "advice": list(self.advice),
        }


def bench_data(data: str, recipe: Recipe, seconds: float) -> LoadingReport:
    """Measure loading ``data`` for training with ``recipe``, ``seconds`` for the stages and again for the whole loader.

    Raises UserError.
    """
    images = open_images(recipe, "train", data, training=True)
    loading = measure_loading(
        images,
        recipe.augment,
        recipe.views,
        batch_size=recipe.data.step_images,
        workers=recipe.data.workers,
        seconds=seconds,
    )
    title = f"{data}: {len(images)} images, views {recipe.views.summary}"
    advice = tuple(advise(recipe, loading, len(images)))
    return LoadingReport(data, tuple(map(str, recipe.views.sizes)), title, loading, advice)


def advise(recipe: Recipe, loading: Loading, count: int) -> Iterator[str]:
    """What would make loading faster, the most certain first."""
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
