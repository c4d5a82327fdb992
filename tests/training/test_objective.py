"""Objectives against independent float64 calculations from their papers' equations; per-view against joint backward."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anyres import create_model
from anyres.config import UserError
from anyres.data.mix import smooth_one_hot
from anyres.flow import Batch, Labels, seen_views
from anyres.recipe import load_recipe
from anyres.tasks.classify import Classify
from anyres.training.objectives import DistillationConfig, ObjectiveConfig, Student
from anyres.training.objectives.cosub import Cosub
from anyres.training.objectives.distillation import hard_distillation, soft_distillation
from anyres.training.objectives.labels import label_loss, pair_loss
from anyres.training.objectives.supervised import Supervised

SIZES = [(48, 48), (32, 40), (24, 24)]
KINDS = [("none", "cls"), ("soft", "logit")]
KINDS += itertools.product(["smooth_l1", "l2", "cosine"], ["cls", "gap", "logit"])


def make(family: str, config: ObjectiveConfig = ObjectiveConfig()) -> tuple[Supervised, Batch]:
    """Cross-entropy and what ``config`` says for a small model in double precision, and four images as three views."""
    torch.manual_seed(0)
    model = create_model(f"{family}_nano", num_classes=7).double().train()
    for parameter in model.parameters():  # away from the initialisation, where several parts are zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    views = tuple(torch.randn(4, 3, h, w, dtype=torch.float64) for h, w in SIZES)
    return Supervised(model, config, Classify().loss), Batch(views, Labels(torch.tensor([0, 3, 6, 3])), torch.arange(4))


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
    config = ObjectiveConfig(consistency=kind, target=target, weight=0.7, temperature=2.0)
    objective, batch = make(family, config)
    student = objective.student
    total, teacher, label = 0.0, None, batch.targets.of(0).numpy()
    made = list(objective.terms(student, batch))
    with torch.no_grad():
        outputs = [tuple(t.numpy() for t in student(view)[1:]) for view in batch.views]
    for i, (logits, feature) in enumerate(outputs):
        h, w = SIZES[i]
        name = str(h) if h == w else f"{h}x{w}"
        ce = np_cross_entropy(logits, label)
        expected = ce
        assert made[i].logged[f"ce/{name}"].item() == pytest.approx(ce, rel=1e-6)
        if teacher is not None and kind != "none":
            apart = np_distance(kind, feature, teacher, 2.0)
            assert made[i].logged[f"consistency/{name}"].item() == pytest.approx(apart, rel=1e-6, abs=1e-7)
            expected += 0.7 * apart
        else:
            assert f"consistency/{name}" not in made[i].logged
        teacher = feature
        assert made[i].loss.item() == pytest.approx(expected / 3, rel=1e-6)
        total += expected / 3
    assert sum(t.loss.item() for t in made) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("family", ["resformer", "restv2", "resmlp"])
def test_gradients_of_per_view_backward_equal_the_joint_ones(family: str) -> None:
    config = ObjectiveConfig(consistency="smooth_l1", target="cls")
    objective, batch = make(family, config)
    for term in objective.terms(objective.student, batch):
        term.loss.backward()
    apart = {name: p.grad.clone() for name, p in objective.student.named_parameters() if p.grad is not None}
    joint, _ = make(family, config)
    torch.stack([term.loss for term in joint.terms(joint.student, batch)]).sum().backward()
    assert apart, "no gradient at all"
    for name, p in joint.student.named_parameters():
        torch.testing.assert_close(apart[name], p.grad, rtol=1e-6, atol=1e-9, msg=name)


def np_bce(logits: np.ndarray, target: np.ndarray) -> float:
    p = 1 / (1 + np.exp(-logits))
    return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


RNG = np.random.default_rng(3)
LOGITS, OTHER = RNG.normal(size=(2, 5, 7)) * 2
LABELS = np.array([0, 6, 2, 2, 5])
MIXED = 0.3 * np.eye(7)[LABELS] + 0.7 * np.eye(7)[LABELS[::-1]]


def test_smoothing_without_mixing_is_label_smoothing() -> None:
    """(1 - s) NLL + s mean(-log p), as timm has it; here smoothing is in the soft target."""
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    log_p = np.log(np_softmax(LOGITS))
    expected = 0.9 * np_cross_entropy(LOGITS, LABELS) + 0.1 * -log_p.mean()
    soft = smooth_one_hot(labels, 7, 0.1).double()
    assert label_loss(logits, soft, "ce").item() == pytest.approx(expected, rel=1e-6)


def test_bce_takes_every_share_for_wholly_right() -> None:
    logits = torch.tensor(LOGITS)
    hot = np.eye(7)[LABELS]
    both = ((hot + hot[::-1]) > 0).astype(float)
    assert both.sum() == 9  # four images have two labels, the middle one meets itself
    assert label_loss(logits, torch.tensor(MIXED), "bce").item() == pytest.approx(np_bce(LOGITS, both))
    assert label_loss(logits, torch.tensor(LABELS), "bce").item() == pytest.approx(np_bce(LOGITS, hot))


def test_distillation_is_that_of_deits_code() -> None:
    student, teacher = torch.tensor(LOGITS), torch.tensor(OTHER)
    assert hard_distillation(student, teacher).item() == pytest.approx(np_cross_entropy(LOGITS, OTHER.argmax(1)))
    p, q = np_softmax(OTHER / 3), np_softmax(LOGITS / 3)
    total = 9 * (p * (np.log(p) - np.log(q))).sum()
    assert soft_distillation(student, teacher, 3.0, "element").item() == pytest.approx(total / 35)
    assert soft_distillation(student, teacher, 3.0, "batch").item() == pytest.approx(total / 5)


@pytest.mark.parametrize("kind", ["ce", "bce"])
def test_the_pair_of_cosub(kind: str) -> None:
    first, second = (torch.tensor(x, requires_grad=True) for x in (LOGITS, OTHER))
    own, mutual = pair_loss(first, second, torch.tensor(MIXED), kind)
    labels = MIXED if kind == "ce" else (MIXED > 0).astype(float)
    p, q = 1 / (1 + np.exp(-LOGITS)), 1 / (1 + np.exp(-OTHER))
    terms_of = [np_bce(LOGITS, labels), np_bce(OTHER, labels), np_bce(LOGITS, q), np_bce(OTHER, p)]
    assert (own + mutual).item() == pytest.approx(sum(terms_of) / 4)
    (own + mutual).backward()
    np.testing.assert_allclose(first.grad, ((p - labels) + (p - q)) / 4 / 35, atol=1e-12)  # what teaches is detached


def constant_teacher(view: torch.Tensor) -> torch.Tensor:
    return torch.eye(7, dtype=torch.float64)[torch.arange(len(view)) % 7] * 4 + view.mean((1, 2, 3))[:, None]


@pytest.mark.parametrize("name", ["restv2_nano", "distilled"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_labels_and_teacher_have_their_own_heads_where_there_are_two(name: str, kind: str) -> None:
    torch.manual_seed(0)
    small = {"dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32}
    distilled = name == "distilled"
    model = (create_model("deit_tiny_distilled", 7, **small) if distilled else create_model(name, 7)).double().eval()
    views = (torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randn(4, 3, 24, 24, dtype=torch.float64))
    batch = Batch(views, Labels(torch.tensor([1, 3, 6, 3])), torch.arange(4))
    how = DistillationConfig(kind=kind, teacher="x", alpha=0.3, temperature=2.0)
    config = ObjectiveConfig(consistency="l2", target="logit", distillation=how)
    objective = Supervised(model, config, Classify().loss, constant_teacher, two_heads=distilled)
    made = list(objective.terms(objective.student, batch))
    above = None
    for term, view in zip(made, views, strict=True):
        with torch.no_grad():
            answer = model(view).numpy()
            pooled = model.forward_head(model.forward_features(view), pre_logits=True)
            own, taught = (h.numpy() for h in model.heads(pooled)) if distilled else (answer, answer)
            lesson = constant_teacher(view).numpy()
        if distilled:
            assert not np.allclose(own, taught)
        expected = 0.7 * np_cross_entropy(own, batch.targets.of(0).numpy())
        if kind == "hard":
            expected += 0.3 * np_cross_entropy(taught, lesson.argmax(1))
        else:
            p, q = np_softmax(lesson / 2), np_softmax(taught / 2)
            expected += 0.3 * 4 * (p * (np.log(p) - np.log(q))).sum() / taught.size
        if above is not None:
            expected += ((answer - above) ** 2).mean()
        above = answer
        assert term.loss.item() == pytest.approx(expected / 2, rel=1e-6)
    sum(term.loss for term in made).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.get_classifier().parameters())


def test_cosub_doubles_every_view_and_its_halves_differ_by_dropped_blocks() -> None:
    supervised, batch = make("restv2")
    cosub = Cosub(supervised.trained, Classify().pairing)
    student = cosub.student
    for term in cosub.terms(student, batch):  # without drop path the halves are one
        name = next(iter(term.logged)).split("/")[1]
        view = next(v for v in batch.views if name in (str(v.shape[2]), f"{v.shape[2]}x{v.shape[3]}"))
        with torch.no_grad():
            logits = student(view)[0].numpy()
        p = 1 / (1 + np.exp(-logits))
        expected = np_bce(logits, np.eye(7)[batch.targets.of(0).numpy()]) / 2 + np_bce(logits, p) / 2
        assert term.loss.item() == pytest.approx(expected / 3, rel=1e-6)
    torch.manual_seed(0)
    dropping = Student(create_model("restv2_nano", 7, drop_path=0.5).double(), "cls")
    first, second = dropping(torch.cat([batch.views[0]] * 2))[0].detach().chunk(2)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("views", "each", "starts"),
    [(3, 1, [0, 1, 2, 0, 1]), (3, 2, [0, 1, 0, 1, 0]), (3, 3, [0] * 5), (4, 3, [0, 1, 0, 1, 0])],
)
def test_the_window_moves_on_by_one_each_step(views: int, each: int, starts: list[int]) -> None:
    images = tuple(torch.full((1, 3, 8, 8), float(i)) for i in range(views))
    batch = Batch(images, Labels(torch.arange(views).float().view(views, 1, 1), per_view=True), torch.arange(1))
    for step, start in enumerate(starts):
        seen = batch.window(seen_views(step, views, each))
        assert [int(v[0, 0, 0, 0]) for v in seen.views] == list(range(start, start + each))
        assert seen.targets.value.flatten().tolist() == list(range(start, start + each))
        shared = replace(batch, targets=Labels(torch.zeros(1, dtype=torch.int64)))
        assert shared.window(seen_views(step, views, each)).targets is shared.targets
    assert seen_views(5, views, None) == range(views)


def test_soft_targets_are_cross_entropy_with_probabilities() -> None:
    objective, batch = make("restv2")
    soft = torch.full((4, 7), 0.1 / 7, dtype=torch.float64)
    soft[torch.arange(4), batch.targets.of(0)] += 0.9
    (term,) = objective.terms(objective.student, Batch(batch.views[:1], Labels(soft.float()), batch.index))
    with torch.no_grad():
        logits = objective.student(batch.views[0])[0].float().numpy()
    expected = -(soft.float().numpy() * np.log(np_softmax(logits))).sum(1).mean()
    assert term.loss.item() == pytest.approx(float(expected), rel=1e-5)


def test_a_target_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target=logit"):
        ObjectiveConfig(consistency="soft", target="cls")
    with pytest.raises(ValueError, match="temperature"):
        ObjectiveConfig(temperature=0.0)
    assert not math.isnan(ObjectiveConfig().weight)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["objective.loss=bce", "mix.smoothing=0.1"], "mix.smoothing=0.1 gives every class a share"),
        (["objective.views_per_step=4"], "objective.views_per_step=4, but views.sizes has 3"),
        (["objective.views_per_step=0"], "objective.views_per_step=0 must be 1 or more"),
        (["objective.cosub=true"], "objective.cosub goes alone"),
        (["objective.cosub=true", "objective.consistency=none"], "set model.drop_path"),
        (["objective.distillation.kind=hard"], "needs a teacher"),
        (["objective.distillation.teacher=regnety_160"], "names regnety_160 but does not distil"),
        (["objective.distillation.teachr=regnety_160"], "did you mean 'teacher'"),
        (
            ["objective.distillation.kind=soft", "objective.distillation.teacher=x", "objective.distillation.alpha=2"],
            "objective.distillation.alpha=2.0 must be above 0",
        ),
    ],
)
def test_what_contradicts_itself_is_one_line(changes: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("nano", changes)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
