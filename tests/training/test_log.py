"""What a run says of its speed, and what it tells trackers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.command import refused
from tests.conftest import TinyRun

from anyres.flow import Batch, Labels
from anyres.training.log import Bar, RunLog
from anyres.training.loop import Clock
from anyres.training.parallel import build_accelerator
from anyres.training.plan import Tracker, TrainConfig


def batches(seconds: float) -> Iterator[Batch]:
    """One-image batches that are waited for."""
    while True:
        time.sleep(seconds)
        yield Batch((torch.zeros(1, 3, 2, 2),), Labels(torch.tensor([0])), torch.tensor([0]))


@pytest.mark.parametrize(("waited", "worked", "advised"), [(0.004, 0.0005, 1), (0.0005, 0.004, 0)])
def test_who_waits_for_images_is_told_so_once(waited: float, worked: float, advised: int) -> None:
    clock, images = Clock(80, torch.device("cpu")), batches(waited)
    said = []
    for _ in range(60):
        clock.waiting(images)
        time.sleep(worked)
        clock.step(1)
        said.append(clock.advice())
    heard = [(i, line) for i, line in enumerate(said) if line]
    assert [i for i, _ in heard] == [49] * advised
    for _, line in heard:
        assert {"data.workers", "data.cache_side", "data.dct=true"} <= set(re.findall(r"data\.[\w=]+", line))
    share = clock.numbers()["speed/data_share"]
    assert (share > 0.5) == bool(advised)
    assert re.fullmatch(rf"\d+ images/s  data {share:.0%}  \d+\.\d GiB  ETA 0:00:0\d", clock.facts())


def test_the_line_has_room_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (80, 140):
        console = Console(width=width, force_terminal=True, record=True)
        monkeypatch.setattr("anyres.training.log.get_console", lambda console=console: console)
        with Bar("run", 100, 0, 10) as bar:
            bar.show(50, "loss 1.234  1000 images/s  data 10%  0.9 GiB  ETA 0:00:10")
        assert "ETA 0:00:10" in console.export_text()


def test_times_are_pictures_not_records(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, 0)
    log.write(0, {"loss": 2.0}, {"speed/images_per_s": 7.0})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "loss": 2.0}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"loss", "speed/images_per_s"}


def test_a_tracker_that_is_unknown_is_named(tiny_run: TinyRun, tmp_path: Path) -> None:
    words = ("train", "restv2_nano", "--data", tiny_run.data, "--out", tmp_path / "run", "data.workers=0")
    assert "train.trackers" in refused(*words, "train.trackers=[neptune]")


def in_two_parts(run: Path, name: Tracker) -> None:
    """A record written by a run, and by its continuation."""
    build_accelerator("auto")
    for step in (0, 1):
        log = RunLog(run, step, (name,), {"train": asdict(TrainConfig())})
        log.write(step, {"loss": 2.0 - step})
        log.close()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    in_two_parts(tmp_path, "mlflow")
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("anyres").experiment_id])
    assert run.data.params.keys() == {"train"}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (1, 1.0)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_goes_on_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    in_two_parts(tmp_path, "wandb")
    parts = [path.name.split("-")[-1] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert set(parts) == {(tmp_path / "wandb.id").read_text()}
