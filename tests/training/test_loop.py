"""The loop's promises: it learns, stops before a bad update, and leaves what can be loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.command import anyres, refused
from tests.conftest import TinyRun
from tests.pictures import make_folder
from tests.runs import forget_the_end, listening, to_earlier_version

from anyres.config import UserError
from anyres.flow import Batch
from anyres.recipe import Claim, load_recipe
from anyres.runs import train as wiring
from anyres.runs.opened import open_run
from anyres.runs.train import train_run
from anyres.tasks.classify import Classify
from anyres.training import checkpoint, loop
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State

SMALL = ["views.sizes=[48, 32]", "data.batch_size=12", "train.eval_every=0", "evaluate.sizes=[32, 48]"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=20)


def test_it_learns_and_the_average_is_what_is_published(shapes: Path, tmp_path: Path) -> None:
    changes = [f"data.source={shapes}", *SMALL, "train.epochs=12", "train.log_every=1", "train.ema_decay=0.9"]
    train_run(load_recipe("restv2_nano", changes), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert any("val/top1/48" in line for line in lines)
    trained = open_run(tmp_path / "run")
    newest = checkpoint.found(tmp_path / "run")[0]
    average, raw = load_file(newest / "ema.safetensors"), load_file(newest / "model.safetensors")
    published = trained.model.state_dict()
    assert all(torch.equal(published[key], average[key]) for key in average)
    assert not torch.equal(raw["head.weight"], average["head.weight"])


def test_the_raw_weights_can_be_published_and_both_are_scored(shapes: Path, tmp_path: Path) -> None:
    average = ["train.ema_decay=0.99", "train.ema_warmup=false", "train.publish=raw", "train.epochs=2"]
    small = ["model.dims=[16,32,64,128]", "model.depths=[1,1,1,1]"]
    recipe = load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL, *small, *average])
    recipe = replace(recipe, claim=Claim(source="a paper", top1={"48": 99.0}))
    run = tmp_path / "run"
    found = train_run(recipe, run)
    assert found is not None
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "val/top1" in line][-1]
    facts = json.loads((run / "run.json").read_text())
    assert list(facts["scores"]) == ["raw", "average"]
    for size in ("", "/48", "/32"):
        assert scored[f"val/top1{size}"] == facts["scores"]["raw"][f"top1{size}"]
        assert scored[f"val/average/top1{size}"] == facts["scores"]["average"][f"top1{size}"]
    newest = checkpoint.found(run)[0]
    raw = load_file(newest / "model.safetensors")
    published = open_run(run).model.state_dict()
    assert all(torch.equal(published[key], raw[key]) for key in raw)
    at_48 = next(size for size in found.sizes if str(size.size) == "48")
    assert at_48.metrics["top1"].value == pytest.approx(facts["scores"]["raw"]["top1/48"])  # it meets the claim
    told = [line for line in found.summary() if "at the end of training" in line]
    assert len(told) == 1
    for name, weights in (("the raw weights", "raw"), ("the moving average", "average")):
        assert f"{name} {100 * facts['scores'][weights]['top1']:.1f} %" in told[0]
    assert told[0].endswith("measured here: the raw weights")
    assert "measured here: the raw weights" in (run / "report.html").read_text()


def test_an_update_that_ruins_the_weights_is_not_saved(shapes: Path, tmp_path: Path) -> None:
    changes = ["optim.lr=1.0e+20", "optim.warmup_epochs=0.0", "optim.clip_norm=null", "train.epochs=4"]
    changes += ["train.checkpoint_every=1"]
    with pytest.raises(UserError, match=r"weights are not finite after step 1.*lower optim\.lr"):
        train_run(load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL, *changes]), tmp_path / "run")
    assert not checkpoint.found(tmp_path / "run")


def test_checkpoints_come_every_epoch_but_at_most_500_steps_apart() -> None:
    def plan(per_epoch: int, every: int | None = None) -> Plan:
        config = TrainConfig(checkpoint_every=every)
        return Plan(10 * per_epoch, per_epoch, 8, config, OptimConfig())

    assert plan(20).checkpoint_every == 20
    assert plan(5000).checkpoint_every == 500
    assert plan(20, 7).checkpoint_every == 7


def records(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that tell of a step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_one_view_at_a_step_the_next_one_each_time(shapes: Path, tmp_path: Path) -> None:
    changes = ["objective.views_per_step=1", "train.epochs=1", "train.log_every=1", "mix.cutmix=1.0", "mix.share=false"]
    train_run(load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL, *changes]), tmp_path / "run", report=False)
    seen = [[key for key in line if key.startswith(("ce/", "consistency/"))] for line in records(tmp_path / "run")]
    assert seen == [["ce/48"], ["ce/32"], ["ce/48"], ["ce/32"]]


def test_cosub_trains_with_binary_cross_entropy(shapes: Path, tmp_path: Path) -> None:
    changes = ["objective.cosub=true", "objective.consistency=none", "objective.loss=bce", "mix.mixup=0.8"]
    changes += ["model.drop_path=0.2", "train.epochs=2", "train.log_every=1"]
    train_run(load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL, *changes]), tmp_path / "run", report=False)
    lines = records(tmp_path / "run")
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        parts = [line[f"{part}/{size}"] for part in ("labels", "mutual") for size in (48, 32)]
        assert line["loss"] == pytest.approx(sum(parts) / 2, rel=1e-5)


def poison(monkeypatch: pytest.MonkeyPatch, harm: Callable[[int, Batch], None]) -> None:
    """Let ``harm`` at every batch before the loop sees it."""
    batches = wiring.training_batches

    def harmed(recipe: Any, task: Any, images: Any, plan: Any, start: int, accelerator: Any) -> Iterator[Batch]:
        for step, batch in enumerate(batches(recipe, task, images, plan, start, accelerator), start):
            harm(step, batch)
            yield batch

    monkeypatch.setattr(wiring, "training_batches", harmed)


def test_a_bad_step_is_skipped_counted_and_named(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(step: int, batch: Batch) -> None:
        if step in (2, 3, 6):
            batch.views[0][0, 0, 0, 0] = float("inf")

    poison(monkeypatch, harm)
    changes = ["train.non_finite=skip", "train.skip_at_most=2", "train.epochs=2", "train.log_every=1"]
    recipe = load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL, *changes])
    with listening() as heard:
        train_run(recipe, tmp_path / "run", report=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "skipped" in line] == [2, 3, 6]
    assert [line["step"] for line in lines if "loss" in line] == [0, 1, 4, 5, 7]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["skipped_steps"] == 3
    said = [line for line in heard if "skipped, with the batch" in line]
    assert len(said) == 3
    assert said[0].startswith("loss or gradient is not finite at step 2: skipped")
    assert ".jpg" in said[0]


def test_too_many_bad_steps_in_a_row_stop_the_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(step: int, batch: Batch) -> None:
        if step >= 2:
            batch.views[1][0, 0, 0, 0] = float("nan")

    poison(monkeypatch, harm)
    changes = ["train.non_finite=skip", "train.skip_at_most=3", "train.epochs=3", "train.checkpoint_every=2"]
    recipe = load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL, *changes])
    for _ in range(2):  # once more: what was skipped in a row is remembered
        with pytest.raises(UserError, match=r"not finite at step 5, in the batch .*\.jpg"):
            train_run(recipe, tmp_path / "run", report=False)
    newest, before = checkpoint.found(tmp_path / "run")
    assert (newest.name, before.name) == ("step_000005", "step_000004")
    weights = [load_file(folder / "model.safetensors") for folder in (newest, before)]
    assert all(torch.equal(weights[0][key], value) and value.isfinite().all() for key, value in weights[1].items())


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_scored_checkpoint_stays(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, higher: bool
) -> None:
    values = [0.5, 0.7, 0.4, 0.6, 0.3, 0.2]
    scores = iter(values if higher else [1 - value for value in values])
    headline, *others = Classify.metrics
    monkeypatch.setattr(Classify, "metrics", (replace(headline, higher_is_better=higher), *others))
    monkeypatch.setattr(wiring, "score_views", lambda *_: {"top1": next(scores)})
    changes = [
        "train.epochs=6",
        "train.eval_every=1",
        "train.checkpoint_every=5",
        "train.ema_decay=null",
    ]  # 4 steps each
    recipe = load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL[:2], "evaluate.sizes=[32]", *changes])
    train_run(recipe, tmp_path / "run", report=False)
    assert [p.name for p in checkpoint.found(tmp_path / "run")] == ["step_000024", "step_000020", "step_000008"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["best_top1"] == (0.7 if higher else 1 - 0.7)


EVERYTHING = [
    "optim.name=lamb",
    "optim.schedule=inclusive_cosine",
    "optim.layer_decay=0.8",
    "optim.weight_decay_end=0.3",
    "objective.distillation.kind=hard",
    "objective.views_per_step=1",
    "train.accumulate=3",
    "train.grad_checkpointing=true",
    "train.channels_last=true",
    "train.non_finite=skip",
    "train.checkpoint_every=3",
    "train.log_every=1",
    "train.epochs=4",
    "train.eval_every=1",
    "model.drop_path=0.2",
    "mix.cutmix=1.0",
]


def test_a_crash_between_checkpoints_changes_nothing(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tests/test_resume.py, with what this file and its neighbours add: teacher, parts, skips, LAMB, schedules."""
    crash_at = 10**9

    def harm(step: int, batch: Batch) -> None:
        if step == 1:
            batch.views[0][0, 0, 0, 0] = float("nan")

    def make_step(accelerator: Any, student: Any, objective: Any, state: State, batch: Batch, plan: Plan) -> Any:
        if state.progress.step == crash_at:  # between two steps the state would be saved
            raise OSError("pulled the plug")
        return step_as_it_is(accelerator, student, objective, state, batch, plan)

    poison(monkeypatch, harm)
    step_as_it_is = loop.make_step
    monkeypatch.setattr(loop, "make_step", make_step)
    changes = [*SMALL[:2], *EVERYTHING, f"objective.distillation.teacher={tiny_run.folder}", "evaluate.sizes=[32]"]
    recipe = load_recipe("restv2_nano", [f"data.source={tiny_run.data}", *changes])
    train_run(recipe, tmp_path / "whole", report=False)
    crash_at = 5
    with pytest.raises(OSError, match="pulled the plug"):
        train_run(recipe, tmp_path / "cut", report=False)
    assert checkpoint.found(tmp_path / "cut")[0].name < "step_000005"
    crash_at = 10**9
    train_run(recipe, tmp_path / "cut", report=False)
    whole, cut = (
        [json.loads(text) for text in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    )
    assert whole == cut
    assert [line["step"] for line in whole if "skipped" in line] == [1]
    for name in ("model.safetensors",):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_run_of_an_earlier_version_opens_continues_and_is_done(tiny_run: TinyRun, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(tiny_run.folder, older)
    to_earlier_version(older)
    trained = open_run(older)
    assert (trained.task.name, trained.classes) == ("classify", ("disc", "square", "stripes"))
    words = [older if word == str(tiny_run.folder) else word for word in tiny_run.command]
    assert "is done: it holds" in anyres(*words).err
    forget_the_end(older)
    answer = anyres(*words)
    assert answer.code == 0, answer.err
    assert "continuing from step" in answer.err
    for name in ("metrics.jsonl", "model.safetensors", "recipe.yaml"):
        assert (older / name).read_bytes() == (tiny_run.folder / name).read_bytes(), name
    assert "data.mean" in refused(*words, "data.mean=[0.5, 0.5, 0.5]")


COMPILED = """
import sys, torch
from anyres.cli import main
torch.compiler.set_default_backend(lambda graph, inputs: print("graph") or graph.forward)
main()
"""


def test_a_compiled_model_trains_alike_and_keeps_its_names(shapes: Path, tmp_path: Path) -> None:
    """With a compiler that changes nothing, as the real one takes minutes; in a process without type checks."""
    values = ["views.sizes=[32]", *SMALL[1:3], "evaluate.sizes=[32]", "train.epochs=1", "train.log_every=1"]
    values += ["train.precision=fp32", "data.workers=0", f"data.source={shapes}"]
    words = ["train", "restv2_nano", "--out", str(tmp_path / "compiled"), *values, "train.compile=true"]
    done = subprocess.run([sys.executable, "-c", COMPILED, *words], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "graph" in done.stdout
    train_run(load_recipe("restv2_nano", values), tmp_path / "plain", report=False)
    plain, other = (records(tmp_path / name) for name in ("plain", "compiled"))
    assert [line["loss"] for line in plain] == pytest.approx([line["loss"] for line in other], rel=1e-4)
    assert len({frozenset(load_file(tmp_path / name / "model.safetensors")) for name in ("plain", "compiled")}) == 1
