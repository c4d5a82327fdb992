"""The loop's promises: it learns, stops before a bad update, and leaves what can be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.pictures import make_folder

from anyres.config import UserError
from anyres.recipe import load_recipe
from anyres.run import train_run
from anyres.train import checkpoint
from anyres.train.loop import Plan, TrainConfig
from anyres.train.objective import ObjectiveConfig
from anyres.train.optim import OptimConfig
from anyres.trained import open_run

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
    from safetensors.torch import load_file

    average, raw = load_file(newest / "ema.safetensors"), load_file(newest / "model.safetensors")
    published = trained.model.state_dict()
    assert all(torch.equal(published[key], average[key]) for key in average)
    assert not torch.equal(raw["head.weight"], average["head.weight"])


def test_a_loss_that_is_not_finite_stops_before_the_update(shapes: Path, tmp_path: Path) -> None:
    changes = ["optim.lr=1.0e+20", "optim.warmup_epochs=0.0", "optim.clip_norm=null", "train.epochs=4"]
    with pytest.raises(UserError, match=r"not finite at step [1-9].*shapes|not finite at step [1-9].*\.jpg"):
        train_run(load_recipe("restv2_nano", [f"data.source={shapes}", *SMALL, *changes]), tmp_path / "run")
    folder = checkpoint.found(tmp_path / "run")[0]
    from safetensors.torch import load_file

    assert all(t.isfinite().all() for t in load_file(folder / "model.safetensors").values())


def test_checkpoints_come_every_epoch_but_at_most_500_steps_apart() -> None:
    def plan(per_epoch: int, every: int | None = None) -> Plan:
        config = TrainConfig(checkpoint_every=every)
        return Plan(10 * per_epoch, per_epoch, 8, config, OptimConfig(), ObjectiveConfig())

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
