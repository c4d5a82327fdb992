"""The cascade: what is chosen keeps its promise on the images it was chosen with, and runs as it was reckoned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyres.config import UserError
from anyres.deploy.cascade import Cascade, CascadePredictor, answering_stage, choose, confidence, temperature
from anyres.deploy.predictor import Predictor
from anyres.flow import Size
from tests.models.zoo import build, stirred

SIZES = (Size(32, 32), Size(64, 64), Size(96, 96))
COSTS = dict(zip(SIZES, (1.0, 4.0, 9.0), strict=True))


def answers(
    n: int, seed: int, noise: tuple[float, float, float] = (2.0, 1.5, 1.0)
) -> tuple[dict[Size, Tensor], Tensor]:
    """Logits of five classes at three sizes, the larger the better, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 5, (n,), generator=generator)
    truth = 3 * torch.nn.functional.one_hot(target, 5).float()
    noise = dict(zip(SIZES, (2.0, 1.5, 1.0), strict=True))
    return {size: truth + noise[size] * torch.randn(n, 5, generator=generator) for size in SIZES}, target


def stages_of(made: Cascade, logits: dict[Size, Tensor]) -> Tensor:
    confidences = [confidence(logits[size], t) for size, t in zip(made.parsed, made.temperatures, strict=True)]
    return answering_stage(confidences, made.thresholds)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), max_loss=st.sampled_from([0.0, 0.3, 2.0, 10.0]))
def test_what_is_chosen_is_what_its_thresholds_do(seed: int, max_loss: float) -> None:
    logits, target = answers(200, seed)
    made = choose(logits, target, COSTS, max_loss)
    assert made.expected_loss <= max_loss
    assert made.speedup >= 1
    assert made.parsed[-1] == SIZES[-1]
    stages = stages_of(made, logits)
    right = torch.stack([logits[s].argmax(1) == target for s in made.parsed])[stages, torch.arange(200)]
    assert made.top1 == pytest.approx(100 * right.double().mean().item())
    assert made.shares == pytest.approx([(stages == i).double().mean().item() for i in range(len(made.sizes))])
    spent = [sum(COSTS[s] for s in made.parsed[: stage + 1]) for stage in stages.tolist()]
    assert made.speedup == pytest.approx(COSTS[SIZES[-1]] * 200 / sum(spent))


def test_a_larger_budget_is_never_slower_and_none_costs_no_answer() -> None:
    logits, target = answers(400, 1)
    speeds = [choose(logits, target, COSTS, loss).speedup for loss in (0.0, 0.1, 0.5, 2.0, 100.0)]
    assert speeds == sorted(speeds)
    assert speeds[-1] == pytest.approx(9.0)  # everything is answered at the first stage
    exact = choose(logits, target, COSTS, 0.0)
    stages = stages_of(exact, logits)
    said = torch.stack([logits[s].argmax(1) for s in exact.parsed])[stages, torch.arange(400)]
    assert torch.equal(said, logits[SIZES[-1]].argmax(1))


def test_the_promise_holds_on_other_images() -> None:
    """Chosen with 300 images at 0.5 points; over 20 draws of 3,000 others the mean loss stays below that."""
    lost = []
    for seed in range(20):
        logits, target = answers(3300, seed)
        made = choose({s: x[:300] for s, x in logits.items()}, target[:300], COSTS, 0.5)
        rest, labels = {s: x[300:] for s, x in logits.items()}, target[300:]
        stages = stages_of(made, rest)
        right = torch.stack([rest[s].argmax(1) == labels for s in made.parsed])[stages, torch.arange(3000)]
        lost.append(100 * ((rest[SIZES[-1]].argmax(1) == labels).double().mean() - right.double().mean()).item())
    assert sum(lost) / len(lost) <= 0.5


def test_the_temperature_is_what_the_logits_were_multiplied_by() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 4, generator=generator)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert temperature(logits * 3, target) == pytest.approx(3, rel=0.05)


def test_pictures_and_pixels_go_as_far_as_they_must(tmp_path: Path) -> None:
    model = stirred(build("restv2", classes=5))
    stages = [Predictor(model, "eager", size, batch=3) for size in SIZES[:2]]
    pictures = [
        torch.randint(0, 256, (3, 80, 70), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        for i in range(10)
    ]
    views = [stage.prepare(pictures) for stage in stages]
    small, large = (stage.forward(view) for stage, view in zip(stages, views, strict=True))
    threshold = float(confidence(small, 2.0).median())
    cascade = Cascade(("32", "64"), (2.0, 0.5), (threshold,), 0.3, 10, 0.1, 90.0, 0.0, (0.5, 0.5), 1.5)
    cascade.write(tmp_path / "cascade.json")
    assert Cascade.read(tmp_path / "cascade.json") == cascade
    runner = CascadePredictor(stages, cascade)
    shares = runner.forward(views)
    early = confidence(small, 2.0) >= threshold
    expected = torch.where(early[:, None], (small / 2).softmax(1), (large / 0.5).softmax(1))
    torch.testing.assert_close(shares, expected)
    assert runner.answered == [int(early.sum()), 10 - int(early.sum())]
    best = runner.predict(pictures)
    assert [row[0].label for row in best] == expected.argmax(1).tolist()
    assert [row[0].probability for row in best] == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    assert runner.predict([]) == []


def test_mistakes_in_one_line(tmp_path: Path) -> None:
    logits, target = answers(20, 0)
    with pytest.raises(UserError, match="two sizes or more"):
        choose({SIZES[0]: logits[SIZES[0]]}, target, COSTS, 1.0)
    with pytest.raises(UserError, match=r"has no cascade: `anyres cascade"):
        Cascade.read(tmp_path / "cascade.json")
    for text in ("{", "[1]", '{"sizes": ["32"]}'):
        (tmp_path / "cascade.json").write_text(text)
        with pytest.raises(UserError, match="holds no cascade"):
            Cascade.read(tmp_path / "cascade.json")
    stage = Predictor(build("restv2"), "eager", 32)
    cascade = Cascade(("32", "64"), (1.0, 1.0), (0.5,), 0.3, 10, 0.1, 90.0, 0.0, (0.5, 0.5), 1.5)
    with pytest.raises(UserError, match="32, 64 px: give a predictor for each"):
        CascadePredictor([stage], cascade)
