"""Scores of several labels against scikit-learn's, whose definitions they state."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_score, recall_score
from torch import nn

from anyres.config import UserError
from anyres.evaluation.choice import pick
from anyres.evaluation.curve_file import read_csv, write_csv
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.multilabel import LabelScores, score_labels, write_label_table
from anyres.flow import Batch, Cost, Labels, Size, SizeResult
from anyres.tasks import known_metrics
from anyres.tasks.multilabel import MultiLabel


def made(seed: int, n: int, k: int, levels: int) -> LabelScores:
    """Scores with many equal ones where ``levels`` are few; a class that no image has if chance wills."""
    rng = np.random.default_rng(seed)
    target = rng.random((n, k)) < rng.random(k)
    target[0, 0] = True
    logits = (rng.integers(-levels, levels + 1, (n, k)) / 2 + target).astype(np.float32)
    return LabelScores(np.arange(n), target, logits)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 6), st.integers(1, 50))
def test_scores_are_those_of_scikit_learn(seed: int, n: int, k: int, levels: int) -> None:
    scores = made(seed, n, k, levels)
    shown = scores.target.any(0)
    target, logits, taken = scores.target[:, shown], scores.logits[:, shown], scores.predicted[:, shown]
    each = [average_precision_score(target[:, c], logits[:, c]) for c in range(shown.sum())]
    np.testing.assert_allclose(scores.average_precision[shown], each, atol=1e-12)
    assert np.isnan(scores.average_precision[~shown]).all()
    assert scores.mean_ap == pytest.approx(np.mean(each))
    rows = scores.rows([str(c) for c in range(k)])
    assert [int(row.name) for row in rows] == np.flatnonzero(shown).tolist()
    for c, row in enumerate(rows):
        own, said = target[:, c], taken[:, c]
        assert row.n == own.sum()
        told = [f(own, said, zero_division=0) for f in (precision_score, recall_score, f1_score)]
        assert [row.precision, row.recall, row.f1] == pytest.approx(told)
    assert scores.f1 == pytest.approx(np.mean([row.f1 for row in rows]))
    probability = 1 / (1 + np.exp(-scores.logits.astype(float)))
    assert scores.loss == pytest.approx(log_loss(scores.target.ravel(), probability.ravel(), labels=[False, True]))
    low, high = scores.interval
    assert 0 <= low <= scores.mean_ap <= high <= 1 + 1e-12
    assert scores.sure(0) == pytest.approx(np.where(scores.predicted[0], probability[0], 1 - probability[0]).prod())


def test_the_interval_narrows_with_more_images_and_is_always_the_same() -> None:
    few, many = made(1, 30, 3, 4), made(1, 3000, 3, 4)
    widths = [scores.interval[1] - scores.interval[0] for scores in (few, many)]
    assert 0.02 < widths[1] * 5 < widths[0] < 0.5
    assert made(1, 30, 3, 4).interval == few.interval


class Answers(nn.Module):
    """A model whose logits stand in its pixels: (b, 3, 1, k) -> (b, k)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0]


def batches(scores: LabelScores, order: list[int]) -> list[Batch]:
    views = torch.from_numpy(scores.logits)[:, None, None].expand(-1, 3, 1, -1)
    target = torch.from_numpy(scores.target).float()
    return [Batch((views[[i]],), Labels(target[[i]]), torch.tensor([i])) for i in order]


def test_every_image_counts_once_whatever_the_order() -> None:
    scores = made(3, 9, 4, 5)
    order = [4, 8, 0, 1, 2, 7, 6, 5, 3, 4, 0]
    padded = lambda local: torch.cat([local, torch.full_like(local[:2].long(), -1).to(local.dtype)])  # noqa: E731
    for gather in (lambda local: local, padded):
        found = score_labels(Answers(), batches(scores, order), EvalSettings(torch.device("cpu"), gather=gather))
        assert found.index.tolist() == list(range(9))
        assert (found.target == scores.target).all()
        assert (found.logits == scores.logits).all()


def test_what_cannot_be_scored_is_one_line() -> None:
    scores, cpu = made(3, 4, 3, 5), EvalSettings(torch.device("cpu"))
    nothing = LabelScores(scores.index, np.zeros_like(scores.target), scores.logits)
    with pytest.raises(UserError, match="none has a label"):
        score_labels(Answers(), batches(nothing, [0, 1]), cpu)
    lost = LabelScores(scores.index, scores.target, np.where(scores.index[:, None] == 2, np.nan, scores.logits))
    with pytest.raises(UserError, match="not finite for 1 images, the first at position 2"):
        score_labels(Answers(), batches(lost, [0, 1, 2]), cpu)
    narrow = [Batch((b.views[0][..., :2],), b.targets, b.index) for b in batches(scores, [0])]
    with pytest.raises(UserError, match="images have 3 classes, but the model knows 2"):
        score_labels(Answers(), narrow, cpu)


def test_files_call_it_what_it_is(tmp_path: Path) -> None:
    scores = made(5, 40, 3, 6)
    write_label_table({Size(24, 24): scores}, "abc", tmp_path)
    rows = list(csv.DictReader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert list(rows[0]) == ["size", "class", "n", "average_precision", "precision", "recall", "f1"]
    assert [float(row["average_precision"]) for row in rows] == [row.average_precision for row in scores.rows("abc")]
    cost = Cost(2.0, 500.0, 7, 1.9, 2.1)
    point = SizeResult("m", Size(24, 24), scores.estimates(), tuple(MultiLabel.metrics), scores.n, cost)
    write_csv([point], tmp_path / "curve.csv")
    head = (tmp_path / "curve.csv").read_text().splitlines()[0]
    first = "model,height,width,map,n,latency_ms,macs,map_low,map_high,f1,loss,images_per_s"
    assert head == f"{first},latency_low_ms,latency_high_ms,disturbed"
    (again,) = read_csv(tmp_path / "curve.csv", known_metrics())
    assert again.row() == point.row()
    assert again.described == point.described
    assert not math.isnan(point.best.value)
    assert point.best.value < 0.999
    with pytest.raises(UserError, match=r"no size reaches mAP 99\.9 %"):
        pick([point], 0.999)
