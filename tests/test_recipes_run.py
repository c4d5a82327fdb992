"""Every recipe makes two steps, with its family's model made small and its sizes a seventh.

It starts from the weights and is taught by the teacher that it names: the files lie here as their authors publish them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import timm
import torch

from anyres.flow import Size
from anyres.models import create_model
from anyres.models.index import known_weights
from anyres.models.registry import variant
from anyres.recipe import list_recipes, load_recipe
from anyres.runs.teacher import Teacher, open_teacher
from anyres.runs.train import train_run
from tests.command import anyres
from tests.conftest import TinyRun
from tests.runs import listening

FOUR = {"dims": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
VIT = {"dim": 32, "depth": 2, "heads": 2}
SMALL = {
    "rest": FOUR,
    "restv2": FOUR,
    "resformer": VIT,
    "resmlp": {"dim": 32, "depth": 2, "img_size": 32},
    "deit": VIT | {"img_size": 64},
    "deit3": VIT | {"img_size": 64},
    "cait": VIT | {"img_size": 64},
    "patchconvnet": {"dim": 32, "depth": 2},
    "dino": VIT | {"img_size": 32},
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str | None], Teacher]]:
    """Opens a teacher with the file of DeiT's, of three classes, as its authors publish it: once, as it is large."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("teacher") / "regnety_160.pth"
    torch.save({"model": timm.create_model("regnety_160", num_classes=3).state_dict()}, file)
    yield cache(lambda what, weights: open_teacher(what, weights or str(file)))
    file.unlink()


def official_file(name: str, folder: Path) -> Path:
    """The file of known weights, of a model made small for 1000 classes: wrapped, but for ResMLP's."""
    row = next(row for row in known_weights() if row.name == name)
    family = variant(row.model).family
    state = create_model(row.model, 1000, **SMALL[family] | {"img_size": 32}).state_dict()
    torch.save(state if family == "resmlp" else {"model": state}, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("name", [name for name in list_recipes() if load_recipe(name).task == "auto"])
def test_a_recipe_makes_two_steps(
    name: str,
    tiny_run: TinyRun,
    opened: Callable[[str, str | None], Teacher],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anyres.runs.teacher.open_teacher", opened)
    recipe = load_recipe(name)
    about = variant(recipe.model["name"])
    values = [f"model.{key}={value}" for key, value in SMALL[about.family].items()]
    if recipe.views.groups:
        groups = [asdict(group) | {"size": Size.parse(group.size).height // 7} for group in recipe.views.groups]
        values.append(f"views.groups={json.dumps(groups)}")
    else:
        values.append(f"views.sizes={[size.height // 7 for size in recipe.views.parsed]}")
    if recipe.objective.dino:
        small = {"out_dim": 64, "hidden": 32, "bottleneck": 16, "warmup_epochs": 1}
        values += [f"objective.dino.{key}={value}" for key, value in small.items()]
    if recipe.weights:
        values.append(f"weights={official_file(recipe.weights, tmp_path)}")
    values += ["data.batch_size=16", "data.workers=0", "train.epochs=1", "train.log_every=1", "evaluate.sizes=[32]"]
    values.append("train.precision=auto")  # accelerate refuses two precisions in one process
    values.append(f"data.source={tiny_run.data}")
    with listening() as said:
        train_run(load_recipe(name, values), tmp_path / "run", report=False)  # test_every_family_trains.py has reports
    assert any("1 epochs of 2 steps of 16 images" in line for line in said)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [line for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 2
    if recipe.objective.distillation.kind != "none":
        assert "taught by regnety_160.teacher, 80.57 M parameters, which sees every view as it is" in said
        assert all(any(key.startswith("distillation/") for key in line) for line in losses)
    if recipe.weights:
        assert f"starting from {tmp_path / 'weights.pth'}, with a new classifier of 3 classes" in said


def test_training_starts_from_weights(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A run of other classes gives its body; the same classes, its classifier too."""
    values = ("views.sizes=[32]", "data.batch_size=16", "train.epochs=1", "data.workers=0", "evaluate.sizes=[32]")
    command = ("train", "restv2_nano", "--data", tiny_run.data, "--weights", tiny_run.folder, *values)
    told = anyres(*command, "--out", tmp_path / "same").err
    assert f"starting from {tiny_run.folder}, with its classifier too" in " ".join(told.split())
