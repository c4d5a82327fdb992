"""A recipe's batch that is more than the images: steps of fewer, and the learning rate with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.pictures import make_folder
from tests.runs import listening

import anyres
from anyres.recipe import load_recipe
from anyres.runs.learner import fitting_batch, make_plan


def test_a_batch_that_fits_is_left_alone() -> None:
    recipe = load_recipe("nano", ["data.batch_size=32"])
    plan = make_plan(recipe, 32)
    assert (plan.batch_size, plan.steps_per_epoch, plan.optim) == (32, 1, recipe.optim)


@pytest.mark.parametrize(
    ("images", "processes", "batch"),
    [(96, 1, 16), (1000, 1, 128), (33, 1, 8), (9, 1, 8), (5, 1, 5), (96, 3, 15), (2, 4, 4)],
)
def test_a_step_takes_a_quarter(images: int, processes: int, batch: int) -> None:
    assert fitting_batch(images, processes) == batch


def test_a_recipe_of_2048_on_96_images() -> None:
    recipe = load_recipe("deit3/small_224")
    assert recipe.data.batch_size == 2048
    plan = make_plan(recipe, 96)
    assert (plan.batch_size, plan.steps_per_epoch) == (16, 6)
    assert plan.rate(plan.steps // 8) < recipe.optim.lr / 100
    own = make_plan(load_recipe("deit/small_224"), 96)  # has a rule of its own
    assert own.optim == load_recipe("deit/small_224").optim
    split = make_plan(load_recipe("nano", ["data.batch_size=64", "train.accumulate=64"]), 20)
    assert split.train.accumulate == split.batch_size == 8


def test_a_run_says_so_and_resumes(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "shapes", per_class=5)
    values = ["views.sizes=32", "train.epochs=2", "batch=128", "data.val_share=0.2", "evaluate.sizes=32"]
    with listening() as said:
        anyres.train("restv2_nano", values, data=data, out=tmp_path / "run", report=False, device="cpu")
    assert "data.batch_size=128 is more than the 12 training images: a step takes 8" in "\n".join(said)
    with listening() as said:
        anyres.train("restv2_nano", values, data=str(data), out=tmp_path / "run", report=False)
    assert "is done" in said[0]
    with pytest.raises(anyres.UserError, match="device 'cuda:99' is not there"):
        anyres.train("restv2_nano", values, data=data, out=tmp_path / "other", device="cuda:99")
