"""Rare classes count more in the loss, by as much as they are rarer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.command import anyres
from tests.pictures import make_folder
from torch import Tensor

from anyres.config import UserError
from anyres.recipe import load_recipe
from anyres.tasks.labels import balanced_weights
from anyres.training.objective_config import LabelLoss
from anyres.training.objectives.labels import label_loss

LOSSES: tuple[LabelLoss, ...] = ("ce", "bce", "soft_bce")


def by_hand(logits: Tensor, target: Tensor, kind: LabelLoss, weights: Tensor) -> Tensor:
    """The definition, one image and one class at a time."""
    total = torch.zeros(())
    for row, of_row in zip(logits, target, strict=True):
        for k, share in enumerate(of_row):
            right = share if kind != "bce" else (share > 0).float()
            if kind == "ce":
                total = total - weights[k] * share * row.log_softmax(0)[k]
            else:
                yes, no = row[k].sigmoid().log(), (-row[k]).sigmoid().log()
                total = total - (weights[k] * right * yes + (1 - right) * no) / logits.shape[1]
    return total / len(logits)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_weighted_loss_is_its_definition(kind: LabelLoss) -> None:
    torch.manual_seed(0)
    logits, index, weights = torch.randn(5, 4), torch.tensor([0, 3, 3, 1, 2]), torch.tensor([0.5, 2.0, 1.0, 0.25])
    mixed = torch.rand(5, 4).softmax(1)
    hot = torch.nn.functional.one_hot(index, 4).float()
    torch.testing.assert_close(label_loss(logits, index, kind, weights), by_hand(logits, hot, kind, weights))
    torch.testing.assert_close(label_loss(logits, mixed, kind, weights), by_hand(logits, mixed, kind, weights))
    parts = [label_loss(logits[part], index[part], kind, weights) for part in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close((2 * parts[0] + 3 * parts[1]) / 5, label_loss(logits, index, kind, weights))
    torch.testing.assert_close(label_loss(logits, index, kind, torch.ones(4)), label_loss(logits, index, kind))


def test_weights_are_by_how_rare_a_class_is() -> None:
    assert balanced_weights((10, 40, 10)) == (2.0, 0.5, 2.0)
    assert balanced_weights((7, 7)) == (1.0, 1.0)
    assert balanced_weights((10, 0, 30)) == (2.0, 1.0, 2 / 3)  # a class without images says nothing


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["objective.cosub=true", "objective.consistency=none", "model.drop_path=0.1"], "cosub has no weights of"),
        (["objective={dino: {}}", "mix.smoothing=0"], "objective.dino goes alone: leave out objective.class_weights"),
        (["data.balance=true"], "data.balance and objective.class_weights both make rare classes count more"),
        (["task=segment", "objective.consistency=none"], "task=segment has no class for each image"),
    ],
)
def test_weights_are_refused_where_they_mean_nothing(keys: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        load_recipe("restv2_nano", [*keys, "objective.class_weights=balanced"])


def test_a_run_says_what_counts_how_much(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "shapes", per_class=8)
    for path in sorted((data / "disc").iterdir())[2:]:
        path.unlink()
    values = ("views.sizes=32", "epochs=1", "data.workers=0", "batch=6", "evaluate.sizes=32", "class_weights=balanced")
    answer = anyres("train", "restv2_nano", "--data", data, "--out", tmp_path / "run", *values)
    assert answer.code == 0, answer.err
    said = re.search(r"class weights: disc counts ([\d.]+) times in the loss, s\w+ (0\.\d+) times", answer.err)
    assert said, answer.err
    assert float(said[1]) > 2
    last = answer.out.strip().splitlines()
    assert last[-1].startswith("written: ")
    assert last[-2].startswith("weights kept: those after epoch 1, the last")
