"""``data.batch_size=auto``: as many images as the memory takes, found once, and the run is that of the number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tests.command import anyres, refused
from tests.pictures import make_folder
from tests.runs import differences
from torch import nn

from anyres.config import UserError
from anyres.recipe import load_recipe
from anyres.runs import batch_size
from anyres.runs.batch_size import KeptBytes, candidates, largest

SMALL = (
    "views.sizes=[32, 24]",
    "train.epochs=1",
    "data.workers=0",
    "evaluate.sizes=[32]",
    "objective.consistency=none",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("shapes") / "shapes", per_class=28)


def test_a_run_keeps_the_number_that_was_found(data: Path, tmp_path: Path) -> None:
    """Where there is room the images decide; the run is, bit for bit, that with the number, and it resumes."""
    words = ("train", "restv2_nano", "--data", data, *SMALL)
    found = anyres(*words, "--out", tmp_path / "found", "batch=-1")
    assert found.code == 0, found.err
    assert "data.batch_size=auto: 16 images a step (there are few images)" in found.err
    assert yaml.safe_load((tmp_path / "found" / "recipe.yaml").read_text())["data"]["batch_size"] == 16
    given = anyres(*words, "--out", tmp_path / "given", "batch=16")
    assert given.code == 0, given.err
    assert differences(tmp_path / "found", tmp_path / "given") == []
    again = anyres(*words, "--out", tmp_path / "found", "--batch", "auto")
    assert again.code == 0, again.err
    assert "is done" in again.err


def test_what_is_kept_for_a_backward_pass_is_counted() -> None:
    layer, counted = nn.Sequential(nn.Linear(10, 10), nn.GELU(), nn.Linear(10, 10)), KeptBytes()
    x = torch.randn(64, 10)
    with torch.autograd.graph.saved_tensors_hooks(counted.keep, lambda held: held.tensor):
        loss = layer(x).square().mean()
        assert counted.most == counted.now > 3 * x.nbytes  # x, what GELU saw, what the second layer saw, its output
        loss.backward()
    assert counted.now == 0
    want = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    for parameter, gradient in zip(layer.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_search_stops_at_the_first_that_does_not_fit() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= 40

    assert largest(candidates(512, 1), fits) == 32
    assert tried == [2, 4, 8, 16, 32, 64]
    assert largest([64, 128], fits) is None
    assert candidates(5000, 1)[-1] == 1024
    assert candidates(64, 3) == [8, 16, 32, 64]
    assert candidates(5, 1) == [2, 4]
    assert candidates(1, 1) == [1]


def test_where_nothing_can_be_found(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "memory", lambda: 10**6)
    line = refused("train", "restv2_nano", "--data", data, "--out", tmp_path / "none", *SMALL, "data.batch_size=auto")
    assert "the memory is too small for 2 images at 32, 24 px" in line
    assert "is found when a training begins" in refused("bench", "data", data, "batch_size=auto")
    with pytest.raises(UserError, match="must be 1 or more, or auto"):
        load_recipe("nano", ["batch=0"])
    with pytest.raises(UserError, match=r"data.batch_size: .*\(given: 'many'; it takes: "):
        load_recipe("nano", ["batch=many"])
