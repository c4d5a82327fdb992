import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyres.config import UserError
from anyres.evaluation import probe
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.metrics import wilson
from anyres.evaluation.probe import NeighborClassifier, Pooled, ProbeConfig, keep, kept, knn, linear, pool
from anyres.flow import Batch, Labels
from anyres.models import create_model

CPU = torch.device("cpu")


def clouds(n: int, classes: int, seed: int, spread: float = 0.9, channels: int = 6) -> Pooled:
    """Vectors about one centre for each class, of any length."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, channels))
    target = rng.integers(0, classes, n)
    vectors = (centres[target] + spread * rng.normal(size=(n, channels))) * rng.uniform(0.5, 3, (n, 1))
    return Pooled(torch.from_numpy(vectors.astype(np.float32)), torch.from_numpy(target))


def by_hand(train: Pooled, test: Pooled, classes: int, k: int) -> tuple[float, float]:
    """Top-1 and top-5 of weighted neighbours, in numpy's double precision, one image after the other."""
    bank = train.vectors.double().numpy()
    bank /= np.sqrt((bank**2).sum(1))[:, None]
    first = five = 0
    for vector, target in zip(test.vectors.double().numpy(), test.target.tolist(), strict=True):
        similarity = bank @ (vector / math.sqrt(sum(vector**2)))
        votes = dict.fromkeys(range(classes), 0.0)
        for place in np.argsort(-similarity)[:k]:
            votes[int(train.target[place])] += math.exp(similarity[place] / 0.07)
        ranked = [name for name, vote in sorted(votes.items(), key=lambda pair: -pair[1]) if vote > 0]
        first += ranked[0] == target
        five += target in ranked[:5]
    return first / len(test.target), five / len(test.target)


@pytest.mark.parametrize(("n", "m", "classes"), [(300, 150, 12), (40, 7, 3), (1, 3, 2), (250, 1, 9)])
def test_neighbours_vote_as_a_loop_says(n: int, m: int, classes: int) -> None:
    train, test = clouds(n, classes, 0), clouds(m, classes, 1)
    found = knn(train, test, classes, (10, 20, 100, 200), CPU)
    assert [one.name for one in found] == [f"{k}-NN" for k in sorted({min(k, n) for k in (10, 20, 100, 200)})]
    for one in found:
        assert (one.top1, one.top5) == pytest.approx(by_hand(train, test, classes, int(one.name.split("-")[0])))
        assert (one.low, one.high) == wilson(round(one.top1 * m), m)
        assert one.n == m


def test_the_figures_of_one_small_case() -> None:
    """Worked out on paper: similarities 1, 0.8 and 0.6; one vote of e^(1/0.07) against two of e^(0.8/0.07)."""
    train = Pooled(torch.tensor([[2.0, 0.0], [4.0, 3.0], [8.0, -6.0], [3.0, 4.0]]), torch.tensor([0, 1, 1, 2]))
    test = Pooled(torch.tensor([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0]]), torch.tensor([0, 1, 2]))
    assert math.exp(1 / 0.07) > 2 * math.exp(0.8 / 0.07)
    (one,) = knn(train, test, 3, (3,), CPU)
    assert one.top1 == pytest.approx(1 / 3), "class 0 wins every time"
    assert one.top5 == pytest.approx(2 / 3), "class 2 is fourth and has no vote, though there are but three classes"
    assert knn(train, test, 3, (4,), CPU)[0].top5 == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 30), st.integers(1, 70))
def test_chunks_do_not_change_the_answer(n: int, m: int, classes: int, k: int) -> None:
    """However few numbers there is room for, down to one image at a time."""
    train, test = clouds(n, classes, 2), clouds(m, classes, 3)
    whole = knn(train, test, classes, (k,), CPU)
    with pytest.MonkeyPatch.context() as patch:
        for room in (1, 5 * (n + classes)):
            patch.setattr(probe, "ROOM", room)
            assert knn(train, test, classes, (k,), CPU) == whole


def test_memory_keeps_to_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """No similarity matrix of more than ROOM numbers is made."""
    monkeypatch.setattr(probe, "ROOM", 2000)
    largest, real = 0, torch.Tensor.topk

    def watched(self: torch.Tensor, *args: object, **named: object) -> object:
        nonlocal largest
        largest = max(largest, self.numel())
        return real(self, *args, **named)

    monkeypatch.setattr(torch.Tensor, "topk", watched)
    knn(clouds(150, 5, 0), clouds(400, 5, 1), 5, (10,), CPU)
    assert 0 < largest <= 2000


def by_numpy(train: Pooled, test: Pooled, classes: int, how: ProbeConfig) -> tuple[float, float]:
    """Softmax regression by SGD with momentum 0.9, its gradient written out, on the same draws."""
    draws = torch.Generator().manual_seed(how.seed)
    weight = torch.empty(classes, train.vectors.shape[1]).normal_(0, 0.01, generator=draws).double().numpy()
    bias, speed_w, speed_b = np.zeros(classes), 0.0 * weight, np.zeros(classes)
    x, y = train.vectors.double().numpy(), np.eye(classes)[train.target.numpy()]
    for epoch in range(how.epochs):
        rate = how.lr * how.batch_size / 256 * 0.5 * (1 + math.cos(math.pi * epoch / how.epochs))
        order = torch.randperm(len(x), generator=draws).numpy()
        for start in range(0, len(x), how.batch_size):
            part = order[start : start + how.batch_size]
            logits = x[part] @ weight.T + bias
            odds = np.exp(logits - logits.max(1, keepdims=True))
            wrong = (odds / odds.sum(1, keepdims=True) - y[part]) / len(part)
            speed_w, speed_b = 0.9 * speed_w + wrong.T @ x[part], 0.9 * speed_b + wrong.sum(0)
            weight, bias = weight - rate * speed_w, bias - rate * speed_b
    logits = test.vectors.double().numpy() @ weight.T + bias
    own = logits[np.arange(len(logits)), test.target.numpy()]
    rank = (logits > own[:, None]).sum(1)
    return float((rank == 0).mean()), float((rank < 5).mean())


@pytest.mark.parametrize("batch_size", [32, 256])
def test_the_linear_layer_learns_as_numpy_says(batch_size: int) -> None:
    """In the middle of its training, where every step still shows."""
    train, test = clouds(230, 12, 0), clouds(400, 12, 1)
    how = ProbeConfig(epochs=7, lr=0.02, batch_size=batch_size, seed=3)
    found = linear(train, test, 12, how, CPU)
    assert (found.top1, found.top5) == by_numpy(train, test, 12, how)
    assert 0.2 < found.top1 < 0.9
    assert linear(train, test, 12, how, CPU) == found, "the same again"


def test_the_global_draws_are_left_alone() -> None:
    train, test = clouds(50, 4, 0), clouds(20, 4, 1)
    torch.manual_seed(1)
    first = linear(train, test, 4, ProbeConfig(epochs=3), CPU)
    torch.manual_seed(2)
    assert linear(train, test, 4, ProbeConfig(epochs=3), CPU) == first


@pytest.mark.parametrize("name", ["restv2_nano", "resmlp_nano", "resformer_nano", "vit_tiny"])
def test_features_are_what_the_classifier_sees(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 3, **({"depth": 2} if name == "vit_tiny" else {})).train()
    images, target = torch.randn(5, 3, 64, 64), torch.tensor([0, 2, -1, 1, 0])
    batches = [
        Batch((images[i : i + 2],), Labels(target[i : i + 2]), torch.arange(i, min(i + 2, 5))) for i in (0, 2, 4)
    ]
    pooled = pool(model, batches, 5, EvalSettings(CPU))
    assert model.training
    labelled = [0, 1, 3, 4]
    assert pooled.target.tolist() == [0, 2, 1, 0]
    with torch.no_grad():
        logits = model.eval()(images[labelled])
    torch.testing.assert_close(model.get_classifier()(pooled.vectors), logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_probed_is_one_line() -> None:
    train = clouds(8, 3, 0)
    with pytest.raises(UserError, match="class index 2, but there are 2 classes"):
        knn(Pooled(train.vectors, torch.full((8,), 2)), train, 2, (5,), CPU)
    with pytest.raises(UserError, match="two models"):
        knn(train, clouds(8, 3, 0, channels=4), 3, (5,), CPU)
    with pytest.raises(UserError, match=r"diverged at lr=1e\+38"):
        linear(train, train, 3, ProbeConfig(lr=1e38, epochs=9), CPU)
    model = create_model("restv2_nano", 3)
    blank = Batch((torch.randn(2, 3, 32, 32),), Labels(torch.full((2,), -1)), torch.arange(2))
    with pytest.raises(UserError, match="none has a label"):
        pool(model, [blank], 2, EvalSettings(CPU))
    broken = Batch((torch.full((2, 3, 32, 32), math.nan),), Labels(torch.zeros(2, dtype=torch.int64)), torch.arange(2))
    with pytest.raises(UserError, match="features are not finite"):
        pool(model, [broken], 2, EvalSettings(CPU))
    for wrong in ({"k": ()}, {"k": (5, 0)}, {"epochs": 0}, {"lr": 0.0}, {"lr": math.nan}, {"batch_size": 0}):
        with pytest.raises(UserError):
            ProbeConfig(**wrong)  # type: ignore[arg-type]


def test_kept_features_are_those_and_no_others(tmp_path: Path) -> None:
    pooled, about = clouds(9, 3, 0), {"model": "a", "set": "b"}
    path = tmp_path / "new" / "val_64.safetensors"
    assert kept(path, about) is None
    keep(pooled, path, about)
    again = kept(path, about)
    assert again is not None
    assert torch.equal(again.vectors, pooled.vectors)
    assert torch.equal(again.target, pooled.target)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match="holds features of another set"):
        kept(path, about | {"set": "c"})
    path.write_bytes(b"no features")
    with pytest.raises(UserError, match="holds no kept features"):
        kept(path, about)


def test_a_backbone_that_asks_its_neighbours_answers_as_they_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are the log of (20 x share of the vote + 1 / classes) / 21, whatever the chunks."""
    torch.manual_seed(0)
    model = create_model("restv2_nano", 0).eval()
    views, target = torch.randn(60, 3, 32, 32), torch.arange(60) % 4
    batches = [Batch((views[i : i + 20],), Labels(target[i : i + 20]), torch.arange(20)) for i in (0, 20, 40)]
    everything = pool(model, batches, 60, EvalSettings(CPU))
    bank, asked = (Pooled(everything.vectors[a:b], target[a:b]) for a, b in ((0, 45), (45, 60)))
    monkeypatch.setattr(probe, "ROOM", 100)
    with torch.no_grad():
        logits = NeighborClassifier(model, bank, 5, CPU)(views[45:])
    vectors = [part.vectors.double().numpy() for part in (bank, asked)]
    known, queries = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors)
    for row, query in zip(logits.double().numpy(), queries, strict=True):
        near = np.argsort(-(known @ query))[:20]
        votes = np.zeros(5)
        np.add.at(votes, target.numpy()[near], np.exp(known[near] @ query / 0.07))
        np.testing.assert_allclose(np.exp(row), (20 * votes / votes.sum() + 1 / 5) / 21, rtol=1e-3)
    (twenty,) = knn(bank, asked, 5, (20,), CPU)
    assert float((logits.argmax(1) == asked.target).float().mean()) == pytest.approx(twenty.top1)
