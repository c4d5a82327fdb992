"""The objective against an independent float64 calculation from recipes F3, and per-view against joint backward."""

import itertools
import math

import numpy as np
import pytest
import torch

from anyres import create_model
from anyres.flow import Batch
from anyres.train.objective import ObjectiveConfig, Student, terms

SIZES = [(48, 48), (32, 40), (24, 24)]
KINDS = [("none", "cls"), ("soft", "logit")]
KINDS += itertools.product(["smooth_l1", "l2", "cosine"], ["cls", "gap", "logit"])


def make(family: str, target: str) -> tuple[Student, Batch]:
    torch.manual_seed(0)
    model = create_model(f"{family}_nano", num_classes=7).double().train()
    for parameter in model.parameters():  # away from the initialisation, where several parts are zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    views = tuple(torch.randn(4, 3, h, w, dtype=torch.float64) for h, w in SIZES)
    return Student(model, target), Batch(views, torch.tensor([0, 3, 6, 3]), torch.arange(4))


def np_cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    log_norm = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return float((log_norm - logits[np.arange(len(target)), target]).mean())


def np_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def np_distance(kind: str, student: np.ndarray, teacher: np.ndarray, tau: float) -> float:
    if kind == "smooth_l1":
        teacher = (teacher - teacher.mean(1, keepdims=True)) / np.sqrt(teacher.var(1, keepdims=True) + 1e-6)
        d = np.abs(student - teacher)
        return float(np.where(d < 1, 0.5 * d * d, d - 0.5).mean())
    if kind == "l2":
        return float(((student - teacher) ** 2).mean())
    if kind == "cosine":
        norms = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
        return 1 - float(((student * teacher).sum(1) / norms).mean())
    p, q = np_softmax(teacher / tau), np_softmax(student / tau)
    return float((p * (np.log(p) - np.log(q))).sum()) * tau * tau / student.size


@pytest.mark.parametrize("family", ["resformer", "restv2", "resmlp"])
@pytest.mark.parametrize(("kind", "target"), KINDS)
def test_losses_equal_an_independent_calculation(family: str, kind: str, target: str) -> None:
    student, batch = make(family, target)
    config = ObjectiveConfig(consistency=kind, target=target, weight=0.7, temperature=2.0)
    total, teacher, label = 0.0, None, batch.target.numpy()
    made = list(terms(student, batch, config))
    with torch.no_grad():
        outputs = [tuple(t.numpy() for t in student(view)) for view in batch.views]
    for i, (logits, feature) in enumerate(outputs):
        h, w = SIZES[i]
        name = str(h) if h == w else f"{h}x{w}"
        ce = np_cross_entropy(logits, label)
        expected = ce
        assert made[i].shown[f"ce/{name}"].item() == pytest.approx(ce, rel=1e-6)
        if teacher is not None and kind != "none":
            apart = np_distance(kind, feature, teacher, 2.0)
            assert made[i].shown[f"consistency/{name}"].item() == pytest.approx(apart, rel=1e-6, abs=1e-7)
            expected += 0.7 * apart
        else:
            assert f"consistency/{name}" not in made[i].shown
        teacher = feature
        assert made[i].loss.item() == pytest.approx(expected / 3, rel=1e-6)
        total += expected / 3
    assert sum(t.loss.item() for t in made) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("family", ["resformer", "restv2", "resmlp"])
def test_gradients_of_per_view_backward_equal_the_joint_ones(family: str) -> None:
    config = ObjectiveConfig(consistency="smooth_l1", target="cls")
    student, batch = make(family, "cls")
    for term in terms(student, batch, config):
        term.loss.backward()
    apart = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    joint, _ = make(family, "cls")
    torch.stack([term.loss for term in terms(joint, batch, config)]).sum().backward()
    assert apart, "no gradient at all"
    for name, p in joint.named_parameters():
        torch.testing.assert_close(apart[name], p.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_soft_targets_are_cross_entropy_with_probabilities() -> None:
    student, batch = make("restv2", "cls")
    soft = torch.full((4, 7), 0.1 / 7, dtype=torch.float64)
    soft[torch.arange(4), batch.target] += 0.9
    (term,) = terms(student, Batch(batch.views[:1], soft.float(), batch.index), ObjectiveConfig())
    with torch.no_grad():
        logits = student(batch.views[0])[0].float().numpy()
    expected = -(soft.float().numpy() * np.log(np_softmax(logits))).sum(1).mean()
    assert term.loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_a_target_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target=logit"):
        ObjectiveConfig(consistency="soft", target="cls")
    with pytest.raises(ValueError, match="temperature"):
        ObjectiveConfig(temperature=0.0)
    assert not math.isnan(ObjectiveConfig().weight)
