import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn

from anyres.config import UserError
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.metrics import compare, score, wilson
from anyres.flow import Batch, Labels

CPU = EvalSettings(torch.device("cpu"))


class Means(nn.Module):
    """Seven logits from the colour means, with a dropout that shows whether evaluation mode was set."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 7)
        self.drop = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(x.mean((2, 3))))


def batches(index: list[int], images: torch.Tensor, target: torch.Tensor, size: int = 4) -> list[Batch]:
    parts = [torch.tensor(index[i : i + size]) for i in range(0, len(index), size)]
    return [Batch(views=(images[part],), targets=Labels(target[part]), index=part) for part in parts]


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(10, 3, 6, 9), torch.tensor([0, 1, 2, 3, 4, 5, 6, 0, -1, 2])


def test_scores_are_those_of_a_plain_loop_in_dataset_order(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels, target = images
    model = Means().train()
    scores = score(model, batches([7, 3, 9, 0, 1, 2, 8, 4, 6, 5], pixels, target), CPU)
    assert model.training, "the mode was not restored"
    assert model.drop.training
    kept = [i for i in range(10) if target[i] >= 0]
    with torch.no_grad():
        logits = model.head(pixels.mean((2, 3)))[kept]
    labels = target[kept]
    assert scores.index.tolist() == kept
    assert scores.n == 9
    assert scores.predicted.tolist() == logits.argmax(1).tolist()
    assert scores.correct.tolist() == (logits.argmax(1) == labels).tolist()
    rank = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert scores.correct5.tolist() == (rank < 5).tolist()
    assert scores.top1 == pytest.approx((rank == 0).double().mean().item())
    expected = -(logits.log_softmax(1)[torch.arange(9), labels])
    assert scores.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    np.testing.assert_allclose(scores.confidence, logits.softmax(1).max(1).values, rtol=1e-5)


def test_images_met_twice_count_once(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Two processes, the second one's last batch filled up with images 0 and 1, as accelerate does."""
    pixels, target = images
    alone = score(Means(), batches(list(range(10)), pixels, target), CPU)
    second = score(Means(), batches([6, 7, 8, 9, 0, 1], pixels, target), CPU)
    columns: list[torch.Tensor] = []
    how = replace(CPU, gather=lambda t: columns.append(t) or t)
    score(Means(), batches([6, 7, 8, 9, 0, 1], pixels, target), how)
    others = iter(columns)
    how = replace(CPU, gather=lambda t: torch.cat([t, next(others)]))
    both = score(Means(), batches(list(range(6)), pixels, target), how)
    assert second.n == 5
    assert both.n == alone.n == 9
    assert both.index.tolist() == alone.index.tolist()
    assert both.correct.tolist() == alone.correct.tolist()
    assert both.loss == pytest.approx(alone.loss)


def test_autocast_is_honoured(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    class Seen(Means):
        dtype: torch.dtype

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            self.dtype = logits.dtype
            return logits

    model = Seen()
    scores = score(model, batches(list(range(10)), *images), replace(CPU, autocast=torch.bfloat16))
    assert model.dtype is torch.bfloat16
    assert scores.losses.dtype == np.float32
    score(model, batches(list(range(10)), *images), CPU)
    assert model.dtype is torch.float32


def test_what_cannot_be_scored_is_one_line(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels, target = images
    with pytest.raises(UserError, match="split is empty"):
        score(Means(), [], CPU)
    with pytest.raises(UserError, match="none has a label"):
        score(Means(), batches([8], pixels, target), CPU)
    with pytest.raises(UserError, match="class index 7, but the model knows 7"):
        score(Means(), batches([0], pixels, torch.full((10,), 7)), CPU)
    pixels[4] = math.nan
    with pytest.raises(UserError, match="not finite for 1 images, the first at position 4"):
        score(Means(), batches(list(range(10)), pixels, target), CPU)


def test_fewer_than_five_classes() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # three logits
    images, target = torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 2, 0])
    assert score(model, batches([0, 1, 2, 3], images, target), CPU).top5 == 1


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_numbers(correct: int, n: int, low: float, high: float) -> None:
    """Newcombe, Two-sided confidence intervals for the single proportion, Stat. Med. 17 (1998), table I, method 3."""
    assert wilson(correct, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_quadratic(case: tuple[int, int]) -> None:
    correct, n = case
    share, z = correct / n, 1.959963984540054
    low, high = wilson(correct, n)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):  # |share - end| = z sqrt(end (1 - end) / n), or the end is at the border
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    assert wilson(*case) == pytest.approx(binomtest(*case).proportion_ci(method="wilson"), abs=1e-12)


def test_wilson_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)


def pair(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize("counts", [(700, 40, 20, 240), (10, 5, 0, 3), (50, 1, 9, 0), (3, 7, 7, 3), (90, 0, 0, 10)])
def test_mcnemar_is_the_binomial_sum(counts: tuple[int, int, int, int]) -> None:
    _, only_a, only_b, _ = counts
    tails = 2 * sum(math.comb(only_a + only_b, i) for i in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    comparison = compare(*pair(*counts))
    assert comparison.p_value == pytest.approx(min(tails, 1.0))
    assert comparison.difference == pytest.approx(100 * (only_a - only_b) / sum(counts))
    assert comparison.low <= comparison.difference <= comparison.high
    assert comparison.inside_noise == (comparison.p_value >= 0.05 or comparison.low <= 0 <= comparison.high)
    assert (comparison.only_a, comparison.only_b, comparison.n) == (only_a, only_b, sum(counts))


def test_the_interval_of_the_difference_covers_what_it_should() -> None:
    """Of 400 draws from a known paired table, about 95 % of the intervals hold the true difference of 6 points."""
    draws = np.random.default_rng(0)
    tables = draws.multinomial(300, (0.66, 0.13, 0.07, 0.14), size=400)
    intervals = [compare(*pair(*map(int, table))) for table in tables]
    covered = np.mean([c.low <= 6 <= c.high for c in intervals])
    assert 0.925 <= covered <= 0.98
    assert np.mean([c.high - c.low for c in intervals]) < 2 * 1.1 * 196 * math.sqrt((0.2 - 0.06**2) / 300)


def test_a_clear_difference_and_a_swap() -> None:
    there, back = compare(*pair(700, 60, 20, 220)), compare(*reversed(pair(700, 60, 20, 220)))
    assert not there.inside_noise
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert compare(*pair(90, 0, 0, 10)).inside_noise


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="cannot pair 0 with 0"):
        compare(np.zeros(0, bool), np.zeros(0, bool))
