"""The smallest run there is: nine images, three steps an epoch, and something that happens at one of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from anyres.flow import Batch
from anyres.recipe import Recipe, load_recipe
from anyres.runs import train as wiring

SMALL = (
    "model.dims=[16, 32, 64, 128]",
    "model.depths=[1, 1, 1, 1]",
    "views.sizes=[32]",
    "evaluate.sizes=[32]",
    "data.batch_size=2",
    "data.workers=0",
    "optim.warmup_epochs=0",
    "train.epochs=2",
    "train.eval_every=1",
    "train.log_every=1",
    "train.checkpoint_every=1000",
    "train.precision=fp32",
)


def small(data: Path, *changes: str) -> Recipe:
    """Six training images, three of them held out: three steps an epoch."""
    return load_recipe("restv2_nano", [f"data.source={data}", *SMALL, *changes])


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[], object]) -> None:
    """Let it happen once, before the batch of that step is handed out."""
    batches, left = wiring.training_batches, [happens]

    def poisoned(recipe: Any, task: Any, images: Any, plan: Any, start: int, accelerator: Any) -> Iterator[Batch]:
        for number, batch in enumerate(batches(recipe, task, images, plan, start, accelerator), start):
            if number == step and left:
                left.pop()()
            yield batch

    monkeypatch.setattr(wiring, "training_batches", poisoned)
