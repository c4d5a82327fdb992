"""Weights that an update has ruined never take the place of good ones, and what the message advises can be done; a step
of which batch norm cannot be computed is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyres.config import UserError
from anyres.runs.train import train_run
from anyres.training import checkpoint
from tests.command import anyres
from tests.faults.small import SMALL, small
from tests.pictures import make_folder
from tests.training.test_checkpoint import make_state

TOO_LARGE = ("optim.lr=1.0e+25", "train.eval_every=0")  # one update makes weights with which no loss is finite


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=3)


def advice(recipe: tuple[str, ...], data: Path, run: Path) -> str:
    with pytest.raises(UserError, match="not finite after step") as refusal:
        train_run(small(data, *recipe), run, report=False)
    return str(refusal.value)


@pytest.mark.parametrize("how", ["stop", "skip"])
def test_the_last_good_checkpoint_is_kept_and_leads_on(data: Path, tmp_path: Path, how: str) -> None:
    """The first step is at the rate zero, the next one overflows; checkpoints come at every step."""
    slow = ("optim.warmup_epochs=1", "train.checkpoint_every=1", f"train.non_finite={how}", "train.epochs=9")
    said = advice((*TOO_LARGE, *slow), data, tmp_path / "run")
    kept = checkpoint.found(tmp_path / "run")
    assert [folder.name for folder in kept] == ["step_000001"]
    assert all(tensor.isfinite().all() for tensor in load_file(kept[0] / "model.safetensors").values())
    weights = re.search(r"--weights (\S+) and another --out", said)
    assert weights, said
    if how == "stop":
        go_on = small(data, f"weights={weights[1]}", "train.epochs=1", "train.eval_every=0")
        train_run(go_on, tmp_path / "on", report=False)
        assert (tmp_path / "on" / "model.safetensors").exists()


def test_ruined_between_checkpoints_nothing_is_saved_and_the_folder_is_free(data: Path, tmp_path: Path) -> None:
    """The loss notices at the next step, and with steps skipped so does the first of them."""
    said = advice((*TOO_LARGE, "optim.lr=1.0e+39"), data, tmp_path / "beyond")  # a float32
    assert "learning rate 1e+39" in said
    said = advice((*TOO_LARGE, "train.non_finite=skip"), data, tmp_path / "run")
    assert "after step 1" in said
    assert "the same --out will do" in said
    assert not checkpoint.found(tmp_path / "run")
    train_run(small(data, "train.epochs=1", "train.eval_every=0"), tmp_path / "run", report=False)


def test_a_ruined_checkpoint_of_an_earlier_version_falls_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make_state(1))
    ruined = make_state(2)
    with torch.no_grad():
        next(ruined.ema.module.parameters())[0] = float("inf")
    checkpoint.save(tmp_path, ruined)
    state = make_state(3)
    (said,) = checkpoint.restore(tmp_path, state)
    assert "step_000002 holds weights that are not finite" in said
    assert state.progress.step == 1


@pytest.mark.parametrize("values", [("data.batch_size=1",), ("data.batch_size=2", "train.accumulate=2")])
def test_batch_norm_of_one_value_is_one_line(data: Path, tmp_path: Path, values: tuple[str, ...]) -> None:
    """ResT v1's last batch norm sees one pixel of one image."""
    sizes = [
        word for word in SMALL if word.startswith(("views", "evaluate", "data.workers", "optim", "train.precision"))
    ]
    plain = ("model.dims=[16, 32, 64, 128]", "mix.mixup=0", "mix.cutmix=0", "train.epochs=1")
    answer = anyres("train", "rest_lite", "--data", data, "--out", tmp_path / "run", *sizes, *plain, *values)
    assert answer.code == 2
    assert answer.err.splitlines()[-1].endswith("raise data.batch_size or views.sizes, or lower train.accumulate")
