"""Two processes make the steps that one makes: in parts, one view at a time, taught, skipping the same one, and with an
objective that leaves views out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.conftest import TinyRun
from tests.models.zoo import build
from tests.runs import SERVER, Run, free_port

from anyres.config import UserError
from anyres.flow import Batch, Labels
from anyres.tasks.classify import Classify
from anyres.training.objectives import ObjectiveConfig, ObjectiveParts, Term
from anyres.training.objectives.registry import FromTerms
from anyres.training.optim import build_optimizer
from anyres.training.parallel import build_accelerator
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State
from anyres.training.step import make_step

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


def first_view(student: Any, batch: Any, parts: Any) -> Iterator[Term]:
    """One pass, whatever the number of views."""
    for loss in (parts.loss(student(batch.views[0]).logits, batch.targets.of(0))[1],):
        yield Term("first", loss)


def silent_end(student: Any, batch: Any, parts: Any) -> Iterator[Term]:
    """A pass for the last view, and no term."""
    yield from first_view(student, batch, parts)
    student(batch.views[1])


def train_in_steps(terms: Callable[..., Iterator[Term]], file: Path, world: dict[str, str]) -> None:
    """Two steps of a small model with an objective of its own; its weights, or what was wrong, go to a file."""
    os.environ.update(world)
    accelerator = build_accelerator("fp32")
    rank, count = accelerator.process_index, accelerator.num_processes
    objective = FromTerms("mine", terms, ObjectiveParts(build("deit3"), ObjectiveConfig(), Classify().loss))
    optim = OptimConfig(name="sgd", lr=0.1, warmup_epochs=0.0)
    plan = Plan(9, 3, 8, TrainConfig(ema_decay=None), optim)
    optimizer = build_optimizer(objective.trained, optim, set())
    student = accelerator.prepare_model(objective.student)
    state = State(objective.trained, None, accelerator.prepare(optimizer))
    said = ""
    for step in range(2):
        torch.manual_seed(step)
        views, labels = tuple(torch.randn(8, 3, side, side) for side in (40, 32)), torch.arange(8) % 5
        own = slice(rank * 8 // count, (rank + 1) * 8 // count)
        batch = Batch(tuple(view[own] for view in views), Labels(labels[own]), torch.arange(8)[own])
        try:
            make_step(accelerator, student, objective, state, batch, plan)
        except UserError as error:
            said = str(error)
            break
        state.progress.step += 1
    weights = {key: value.clone() for key, value in objective.trained.state_dict().items()}
    save_file(weights, file.with_name(f"{file.name}.{rank}"), {"said": said})
    if dist.is_initialized():
        dist.destroy_process_group()


def run_in_steps(terms: Callable[..., Iterator[Term]], file: Path, processes: int) -> list[tuple[dict[str, Any], str]]:
    """Of each process, the weights it came to, and what was wrong."""
    port = str(free_port())
    started = []
    for rank in range(processes):
        world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place = world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(SERVER.Process(target=train_in_steps, args=(terms, file, place)))
        started[-1].start()
    for process in started:
        process.join(200)
        assert process.exitcode == 0
    files = [file.with_name(f"{file.name}.{rank}") for rank in range(processes)]
    found = []
    for each in files:
        with safe_open(each, framework="pt") as opened:
            found.append((load_file(each), opened.metadata()["said"]))
    return found


def test_gradients_are_exchanged_where_fewer_passes_are_made_than_there_are_views(tmp_path: Path) -> None:
    ((one, _),) = run_in_steps(first_view, tmp_path / "one", 1)
    (first, _), (second, _) = run_in_steps(first_view, tmp_path / "two", 2)
    start = build("deit3").state_dict()
    assert max(float((one[key] - start[key]).abs().max()) for key in one) > 1e-3
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_a_pass_for_the_last_view_without_a_term_is_named(tmp_path: Path) -> None:
    for _, said in run_in_steps(silent_end, tmp_path / "two", 2):
        assert said.startswith("objective 'mine' yields no term for the last view, with which 2 processes exchange")
    ((_, alone),) = run_in_steps(silent_end, tmp_path / "one", 1)
    assert alone == ""
