"""What cannot fit into this machine is refused before any work: one rule for training, scoring and answering.

Only a lower bound is asked for, the images themselves; what a model needs beside them shows when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from anyres.config import UserError
from anyres.flow import Size
from anyres.recipe import Recipe
from anyres.runs.inputs import crop_ratio, evaluated_sizes, shows_whole

TRAINED_BYTES = 4
"""Of a value of a training view: bytes in the loader's two batches, and a part of the batch as floats."""
SCORED_BYTES = 16
"""Of a value of an image that is scored: resized as floats, as bytes, cut, and normalized."""
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's."""
    if sys.platform == "win32":
        import psutil  # of accelerate's

        found = [int(psutil.virtual_memory().total)]
    else:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        try:
            text = path.read_text("utf-8").strip()
        except OSError:
            continue
        found += [int(text)] if text.isdecimal() and int(text) > 0 else []  # or "max"
    return min(found)


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError where a step's images, or the images scored at a time, are more than the machine's memory."""
    channels = recipe.data.channels or len(recipe.data.mean)
    images = 1 if recipe.data.batch_size == "auto" else recipe.data.batch_size
    here = -(-images // int(os.environ.get("WORLD_SIZE") or 1))
    values = here * channels * sum(size.height * size.width for size in recipe.views.parsed)
    _check(
        float(values * TRAINED_BYTES),
        f"a step of data.batch_size={images} images at {recipe.views.summary} px",
        "lower data.batch_size or views.sizes",
    )
    check_sizes_fit(evaluated_sizes(recipe), recipe, recipe.evaluate.batch_size)


def check_sizes_fit(sizes: Sequence[Size], recipe: Recipe, images: int) -> None:
    """Raises UserError where ``images`` at a time, prepared as the recipe scores them, do not fit at one size."""
    channels = recipe.data.channels or len(recipe.data.mean)
    crop = 1.0 if recipe.evaluate.warp or shows_whole(recipe) else crop_ratio(recipe)
    for size in sizes:
        copies = images - 1 + (1 / crop) * (1 / crop)  # each is resized by itself, then cut
        values = channels * size.height * size.width * copies
        _check(
            float(values * SCORED_BYTES),
            f"{images} image{'s' * (images > 1)} at {size} px (crop {crop:g})",
            "give a smaller size, a larger evaluate.crop, or a smaller evaluate.batch_size",
        )


def _check(needed: float, what: str, mend: str) -> None:
    if needed > (room := memory()):
        raise UserError(f"{what} take at least {needed / 1e9:.3g} GB, and this machine has {room / 1e9:.3g}: {mend}")
