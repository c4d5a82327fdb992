"""A run ends early when nothing gets better or its time is up; a finished one goes on where its schedule lets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.faults.small import small
from tests.pictures import make_folder
from tests.runs import differences, listening
from tests.training.test_kept import facts, leaping

from anyres.config import UserError
from anyres.recipe import Recipe
from anyres.runs import train as wiring
from anyres.runs.train import train_run
from anyres.training import checkpoint, loop
from anyres.training.schedule import OptimConfig, learning_rate

FOUR = ("train.epochs=4", "train.eval_every=4")
CONSTANT = ("optim.schedule=constant", "optim.warmup_epochs=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=3)


def run_for(recipe: Recipe, run: Path) -> list[str]:
    with listening() as said:
        train_run(recipe, run, report=False)
    return said


def steps(run: Path) -> int:
    return int(facts(run)["steps"])


def test_a_constant_rate_does_not_know_the_end() -> None:
    config = OptimConfig(schedule="constant", warmup_epochs=2.0)
    rates = [learning_rate(step, 0.5, config, 10, total) for total in (30, 300) for step in range(30)]
    assert rates[:30] == rates[30:]
    assert rates[19] < rates[20] == rates[29] == 0.5


def test_a_finished_run_is_prolonged_as_if_it_had_been_longer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "score_views", leaping)
    train_run(small(data, *CONSTANT, "train.epochs=4"), tmp_path / "long", report=False)
    run = tmp_path / "short"
    train_run(small(data, *CONSTANT, "train.epochs=2"), run, report=False)
    (run / "report.html").write_text("of two epochs")
    one = data / "disc" / "00.jpg"
    one.rename(data / "disc" / "00b.jpg")
    with pytest.raises(UserError, match="images are not those"):
        train_run(small(data, *CONSTANT, "train.epochs=4"), run, report=False)
    (data / "disc" / "00b.jpg").rename(one)
    assert (run / "model.safetensors").exists(), "a refusal costs nothing"
    said = run_for(small(data, *CONSTANT, "train.epochs=4"), run)
    assert any("continuing from step 6 of 12" in line for line in said)
    assert not differences(tmp_path / "long", run)
    assert facts(run) | {"seconds": 0} == facts(tmp_path / "long") | {"seconds": 0}
    assert not (run / "report.html").exists()
    assert "is done" in run_for(small(data, *CONSTANT, "train.epochs=4"), run)[-1]
    with pytest.raises(UserError, match=r"train\.epochs: 4 -> 3"):
        train_run(small(data, *CONSTANT, "train.epochs=3"), run, report=False)
    for folder in checkpoint.found(run):
        folder.rename(tmp_path / folder.name)
    with pytest.raises(UserError, match="no checkpoint to go on from: give --weights"):
        train_run(small(data, *CONSTANT, "train.epochs=5"), run, report=False)


def test_patience_ends_a_run_and_more_of_it_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.5, 0.7, 0.6, 0.7, 0.2, 0.9, 0.1, 0.1]
    monkeypatch.setattr(wiring, "score_views", lambda *_: {"top1": scores[scored(tmp_path / "run") // 3 - 1]})

    def scored(run: Path) -> int:
        return (run / "metrics.jsonl").read_text().count('"loss"')

    def at(*changes: str) -> Recipe:
        return small(data, *CONSTANT, "train.epochs=8", *changes)

    said = run_for(at("train.patience=2"), tmp_path / "run")
    assert steps(tmp_path / "run") == 12, "the fourth is as good as the second, not better"
    assert "It ended after epoch 4 of 8, by train.patience: the same command with a larger" in said[-1]
    assert facts(tmp_path / "run")["kept"]["step"] == 6
    assert facts(tmp_path / "run")["ended"] == "patience"
    assert "is done" in run_for(at("train.patience=2"), tmp_path / "run")[-1]
    for name in ("model.safetensors", "run.json"):  # killed before it was written
        (tmp_path / "run" / name).unlink()
    run_for(at("train.patience=2"), tmp_path / "run")
    assert steps(tmp_path / "run") == 12
    run_for(at("train.patience=4"), tmp_path / "run")
    assert steps(tmp_path / "run") == 24
    assert facts(tmp_path / "run")["ended"] == ""
    assert facts(tmp_path / "run")["kept"]["step"] == 18
    with pytest.raises(UserError, match=r"set train\.eval_every=1 or more"):
        at("train.patience=2", "train.eval_every=0")


def test_the_time_that_is_up_ends_a_run_with_all_written_and_more_of_it_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cosine too: the schedule is that of all epochs. A step takes half a minute, by a clock of this test."""
    monkeypatch.setattr(loop.Clock, "lap", lambda _: 30.0)
    train_run(small(data, *FOUR), tmp_path / "whole", report=False)
    run = tmp_path / "run"
    said = run_for(small(data, *FOUR, "train.max_minutes=2"), run)
    assert steps(run) == 4
    assert "It ended after epoch 1.33 of 4, by train.max_minutes" in said[-1]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/top1" in line] == [3]
    assert "by train.max_minutes" in run_for(small(data, *FOUR, "train.max_minutes=1"), run)[-1]
    run_for(small(data, *FOUR), run)
    assert steps(run) == 12
    assert facts(run)["ended"] == ""
    a, b = ((one / "step_000012" / "ema.safetensors").read_bytes() for one in (tmp_path / "whole", run))
    assert a == b
    with pytest.raises(UserError, match="max_minutes=0"):
        small(data, "train.max_minutes=0")


def test_a_run_of_before_stays_as_it_is_and_a_cosine_cannot_be_prolonged(data: Path, tmp_path: Path) -> None:
    """A finished run whose recipe and facts know nothing of all this."""
    run = tmp_path / "run"
    train_run(small(data, "train.epochs=1"), run, report=False)
    lines = (run / "recipe.yaml").read_text().splitlines(keepends=True)
    new = ("  keep:", "  patience:", "  max_minutes:")
    (run / "recipe.yaml").write_text("".join(line for line in lines if not line.startswith(new)))
    known: dict[str, Any] = facts(run)
    for key in ("kept", "ended"):
        del known[key]
    (run / "run.json").write_text(json.dumps(known))
    assert "is done" in run_for(small(data, "train.epochs=1", "train.keep=last"), run)[-1]
    with pytest.raises(UserError, match=r"prolonged to train\.epochs=2: optim\.schedule=cosine spreads .* --weights"):
        train_run(small(data, "train.epochs=2"), run, report=False)


def test_classes_are_balanced_and_blocks_frozen_in_a_run(data: Path, tmp_path: Path) -> None:
    skewed = Path(shutil.copytree(data, tmp_path / "skewed"))
    for number in range(6):
        shutil.copy(data / "disc" / "00.jpg", skewed / "disc" / f"more{number}.jpg")
    recipe = small(skewed, "data.balance=true", "train.freeze_blocks=1", "train.epochs=2", "train.ema_decay=null")
    said = run_for(recipe, tmp_path / "run")
    assert any("balanced: each class comes" in line and "they have 2 to" in line for line in said)
    assert any("M of them trained" in line for line in said)
    newest, first = (load_file(folder / "model.safetensors") for folder in checkpoint.found(tmp_path / "run")[:2])
    moved = {key for key, tensor in newest.items() if not torch.equal(tensor, first[key])}
    assert "head.weight" in moved
    assert not [key for key in moved if key.startswith(("stem.", "stage1."))]
