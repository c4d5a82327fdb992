"""Detectors, segmenters and models of clips that are killed go on as if nothing had happened, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import test_detect, test_segment, test_video
from tests.runs import Run, differences, recorded

STEPS = 24
OFTEN = (
    *("train.log_every=1", "train.checkpoint_every=3", "train.ema_decay=0.9", "data.batch_size=2"),
    *("objective.views_per_step=1", "data.repeats=2"),
)


class Dense(NamedTuple):
    """A task's recipe, what draws its pictures, and its values: steps of random sizes, crops and, of a detector,
    proposals."""

    recipe: str
    draw: Callable[[Path], Path]
    values: tuple[str, ...]
    kills: int


DENSE = {
    "detect": Dense(
        "detect/lungs",
        lambda root: test_detect.draw(root, 5),
        (*test_detect.TINY, "views.sizes=[64,33x64]", "train.epochs=12", "train.eval_every=6", "evaluate.sizes=[64]"),
        kills=3,
    ),
    "segment": Dense(
        "segment/lungs",
        lambda root: test_segment.draw(root, 5),
        (*test_segment.TINY, "views.sizes=[48,33x40]", "train.epochs=12", "train.eval_every=6", "evaluate.sizes=[48]"),
        kills=1,
    ),
    "video": Dense(
        "video/pace",
        lambda root: test_video.draw(test_video.draw(root, count=2), "val", 1),
        (*test_video.TINY, "views.sizes=[24,17x16]", "train.epochs=12", "train.eval_every=6", "evaluate.sizes=[24]"),
        kills=1,
    ),
}


@pytest.mark.timeout(420)
@pytest.mark.parametrize("task", DENSE)
def test_killed_at_random_steps(task: str, tmp_path: Path) -> None:
    how = DENSE[task]
    data, values = how.draw(tmp_path / "set"), (*how.values, *OFTEN)
    whole, run = (Run(data, tmp_path / name, *values, words=("train", how.recipe)) for name in ("whole", "cut"))
    whole.start().wait()
    assert recorded(whole.out) == STEPS
    third = STEPS // how.kills
    killed = [random.SystemRandom().randint(first + 4, first + third - 2) for first in range(0, STEPS, third)]
    for step in killed:
        run.start().reach(step).kill()
    assert "continuing from step" in run.start().wait()
    assert not differences(whole.out, run.out), f"killed at {killed}"
