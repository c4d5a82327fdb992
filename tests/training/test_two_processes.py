"""Two processes make the steps that one makes: in parts, one view at a time, taught, and skipping the same one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.conftest import TinyRun
from tests.runs import Run

MODEL = "deit_tiny_distilled model.dim=48 model.depth=2 model.heads=2 model.patch_size=8 model.img_size=32"
VALUES = (
    "views.sizes=[48,32] data.batch_size=8 evaluate.sizes=[32] train.precision=fp32 data.workers=0 train.epochs=2 "
    "train.log_every=1 train.eval_every=1 train.non_finite=skip optim.lr=0.01 optim.layer_decay=0.8 mix.mixup=0 "
    "mix.cutmix=0 mix.smoothing=0 "
    "optim.warmup_epochs=1 objective.distillation.kind=hard objective.views_per_step=1"
)


def harm() -> None:
    """The last process is given a pixel that is no number at step 2."""
    import anyres.runs.train as wiring

    batches = wiring.training_batches

    def harmed(recipe: Any, task: Any, images: Any, plan: Any, start: int, accelerator: Any) -> Iterator[Any]:
        for step, batch in enumerate(batches(recipe, task, images, plan, start, accelerator), start):
            if step == 2 and accelerator.process_index == accelerator.num_processes - 1:
                batch.views[0][-1, 0, 0, 0] = float("nan")
            yield batch

    wiring.training_batches = harmed  # type: ignore[assignment]


def losses(out: Path, tiny: TinyRun, processes: int) -> list[tuple[int, float]]:
    values = (*VALUES.split(), f"objective.distillation.teacher={tiny.folder}", f"train.accumulate={processes}")
    run = Run(tiny.data, out, *values, processes=processes, words=("train", *MODEL.split()), before=harm)
    assert run.start().wait().count("not finite at step 2: skipped") == 1
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    made = [line for line in lines if "loss" in line or "skipped" in line]
    return [(line["step"], line["loss"] if "loss" in line else -line["skipped"]) for line in made]


@pytest.mark.timeout(420)
def test_two_processes_match_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    one, two = (losses(tmp_path / str(count), tiny_run, count) for count in (1, 2))
    assert [step for step, _ in one] == [step for step, _ in two] == list(range(8))
    assert one[2] == two[2] == (2, -1.0)
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in two], rel=1e-5)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in ours) < 2e-5
