"""Which weights a run leaves: the best scored, through crashes too, or the last."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.faults.small import small
from tests.pictures import make_folder
from tests.runs import differences, listening
from torch import nn

from anyres.config import UserError
from anyres.runs import train as wiring
from anyres.runs.opened import DataSpec, open_run
from anyres.runs.report import cautions_for, report_on
from anyres.runs.samples import samples_of
from anyres.runs.train import train_run
from anyres.runs.training_record import GAP
from anyres.training import checkpoint, loop

FIVE = "train.epochs=5"


def leaping(recipe: Any, task: Any, model: nn.Module, *_: Any) -> dict[str, float]:
    """A score that leaps from epoch to epoch, and is the same for the same weights."""
    return {"top1": float(1e5 * model.head.weight.detach().double().sum()) % 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=3)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "score_views", leaping)
        train_run(small(data, FIVE), out, report=False)
    return out


def facts(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def test_the_best_is_kept_and_the_last_beside_it(whole: Path) -> None:
    scored = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines() if "val/" in line]
    best = max(scored, key=lambda line: line["val/top1"])
    assert best["step"] + 1 < 15, "the last is the best: take another score"
    newest, *others = checkpoint.found(whole)
    assert newest.name == "step_000015"
    chosen = next(folder for folder in others if int(folder.name[5:]) == best["step"] + 1)
    assert same(whole / "model.safetensors", chosen / "ema.safetensors")
    assert same(whole / "last.safetensors", newest / "ema.safetensors")
    assert not same(whole / "model.safetensors", whole / "last.safetensors")
    kept = facts(whole)["kept"]
    assert (kept["rule"], kept["step"], kept["last"]) == ("best", best["step"] + 1, 15)
    assert (kept["epoch"], kept["last_epoch"]) == (kept["step"] / 3, 5)
    assert kept["scores"]["average"]["top1"] == best["val/top1"]
    assert kept["scored"] == 5
    assert open_run(whole).names


def test_a_crash_changes_nothing_of_it(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes = (5, 10, 14)
    left, step_as_it_is = list(crashes), loop.make_step

    def make_step(accelerator: Any, student: Any, objective: Any, state: Any, *more: Any) -> Any:
        if left and state.progress.step == left[0]:  # within a step nothing is saved
            left.pop(0)
            raise OSError("pulled the plug")
        return step_as_it_is(accelerator, student, objective, state, *more)

    monkeypatch.setattr(loop, "make_step", make_step)
    monkeypatch.setattr(wiring, "score_views", leaping)
    for _ in crashes:
        with pytest.raises(OSError, match="pulled the plug"):
            train_run(small(data, FIVE), tmp_path / "run", report=False)
    train_run(small(data, FIVE), tmp_path / "run", report=False)
    assert not differences(whole, tmp_path / "run")
    assert facts(tmp_path / "run") | {"seconds": 0} == facts(whole) | {"seconds": 0}


def test_a_run_without_scorings_keeps_the_last(data: Path, tmp_path: Path) -> None:
    train_run(small(data, "train.eval_every=null"), tmp_path / "run", report=False)
    found = facts(tmp_path / "run")
    assert (found["kept"]["rule"], found["kept"]["scored"], found["scores"]) == ("last", 0, {})
    assert "val/" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    measured = train_run(small(data, "train.eval_every=null"), tmp_path / "run")  # the page is made up for
    assert measured is not None
    assert measured.sizes[0].n
    with pytest.raises(UserError, match=r"train\.keep=best chooses by scorings"):
        small(data, "train.eval_every=null", "train.keep=best")


def test_the_last_is_kept_where_it_is_asked_for_or_the_best_is_lost(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "score_views", leaping)
    run = tmp_path / "run"
    train_run(small(data, FIVE, "train.keep=last"), run, report=False)
    assert same(run / "model.safetensors", whole / "last.safetensors")
    assert not (run / "last.safetensors").exists()
    assert facts(run)["kept"]["rule"] == "last"
    best = run / f"step_{facts(whole)['kept']['step']:06d}" / "ema.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    with listening() as said:
        train_run(small(data, FIVE), run, report=False)
    assert any("are lost" in line and "the last are kept" in line for line in said)
    assert same(run / "model.safetensors", whole / "last.safetensors")


def test_the_page_says_which_and_that_these_images_chose_it(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    trained = open_run(run)
    evaluation = report_on(trained, trained.images())
    html = (run / "report.html").read_text()
    assert f"after epoch {facts(run)['kept']['epoch']:g} of 5, the best of 5 scored" in html
    assert "These 3 images chose the epoch" in html
    assert "The dashed line is the epoch whose weights were kept" in html
    with Image.open(run / "views.jpg") as sheet:
        assert sheet.size == (2 * (32 + GAP) + GAP, 32 + 2 * GAP)  # two images of a step, one view
    assert 'alt="Augmented training images at 32 px."' in html
    measured = evaluation.results[0]
    scores = replace(measured.scores, correct=np.asarray([True, True, False]))
    samples, lead = samples_of(evaluation.images, [("run", trained, [measured._replace(scores=scores)])])
    named = [record.name for record in evaluation.images.source.records]
    assert [sample.name for sample in samples] == [named[2], *named[:2]]
    assert lead == "First 1 of the 1 images (of 3) that the model at its best size got wrong, then 2 others."
    others = make_folder(tmp_path / "others", per_class=4)
    assert cautions_for(trained, trained.images())
    assert not cautions_for(trained, trained.images(DataSpec(str(others))))


def test_choosing_by_the_test_images_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = tmp_path / "data"
    for split in ("train", "test"):
        make_folder(both / split, per_class=2 if split == "train" else 1)
    with listening() as said:
        train_run(
            small(both, "data.eval_split=test", "train.epochs=1", "train.keep=best"), tmp_path / "a", report=False
        )
    assert any("chooses the epoch by the test images" in line for line in said)
    train_run(small(both, "data.eval_split=test", "train.epochs=1"), tmp_path / "b", report=False)
    assert facts(tmp_path / "b")["kept"]["rule"] == "last"
