"""What an objective may do: any number of terms per view, each named, summed, and gone before the next view runs."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.command import refused
from tests.conftest import TinyRun
from tests.models.zoo import build
from torch import Tensor

from anyres.config import UserError
from anyres.flow import Batch, Labels, Record
from anyres.recipe import load_recipe
from anyres.tasks import ImageTask, register_task, task_class
from anyres.tasks import registry as tasks
from anyres.tasks.classify import Classify
from anyres.training.objectives import (
    Objective,
    ObjectiveConfig,
    ObjectiveParts,
    StudentOutput,
    Term,
    register_objective,
    registered_objective,
)
from anyres.training.objectives import registry as objectives
from anyres.training.optim import build_optimizer
from anyres.training.parallel import build_accelerator
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State
from anyres.training.step import back_propagate, make_step

See = Callable[[Tensor], StudentOutput]
SIZES = ((40, 40), (32, 24))


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    monkeypatch.setattr(objectives, "_REGISTERED", dict(objectives._REGISTERED))


def make_batch(count: int = 6) -> Batch:
    torch.manual_seed(0)
    return Batch(
        tuple(torch.randn(count, 3, h, w) for h, w in SIZES), Labels(torch.arange(count) % 5), torch.arange(count)
    )


def parts_of(output: StudentOutput, batch: Batch, i: int, parts: ObjectiveParts) -> list[Tensor]:
    """Two scalars for the first view, three for the next; each a mean over the images."""
    losses = [parts.loss(output.logits, batch.targets.of(i))[1], 0.1 * output.feature.square().mean()]
    return [*losses, output.logits.logsumexp(-1).mean()][: 2 + i]


def several(student: See, batch: Batch, parts: ObjectiveParts) -> Iterator[Term]:
    for i, view in enumerate(batch.views):
        for j, loss in enumerate(parts_of(student(view), batch, i, parts)):
            yield Term(f"{'abc'[j]}/{i}", loss)


def summed(student: See, batch: Batch, parts: ObjectiveParts) -> Iterator[Term]:
    for i, view in enumerate(batch.views):
        yield Term(f"all/{i}", sum(parts_of(student(view), batch, i, parts), torch.zeros(())))


def nothing(student: See, batch: Batch, parts: ObjectiveParts) -> Iterator[Term]:
    for view in batch.views:
        student(view)
    yield from ()


def made_of(terms: Callable[[See, Batch, ObjectiveParts], Iterator[Term]]) -> Objective:
    """The objective of that function, for a small model without batch norm."""
    name = terms.__name__
    register_objective(name)(terms)
    return registered_objective(name)(ObjectiveParts(build("deit3"), ObjectiveConfig(), Classify().loss))


def gradients(objective: Objective, accumulate: int = 1) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradients of one batch, and the numbers that are shown."""
    shown = back_propagate(build_accelerator("fp32"), objective.student, objective, make_batch(), accumulate)
    grads = {name: p.grad for name, p in objective.student.named_parameters() if p.grad is not None}
    return grads, {name: float(value) for name, value in shown.items()}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_and_three_terms_are_each_named_and_their_sum_is_minimized(accumulate: int) -> None:
    grads, shown = gradients(made_of(several), accumulate)
    wanted, sums = gradients(made_of(summed))
    assert list(shown) == ["loss", "a/0", "b/0", "a/1", "b/1", "c/1"]
    assert shown["loss"] == pytest.approx(sum(value for name, value in shown.items() if name != "loss"), rel=1e-5)
    assert shown["loss"] == pytest.approx(sums["loss"], rel=1e-5)
    assert shown["a/0"] + shown["b/0"] == pytest.approx(sums["all/0"], rel=1e-5)
    assert grads.keys() == wanted.keys()
    assert len(grads) > 40
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_view_is_back_propagated_and_forgotten_before_the_next_one_runs() -> None:
    objective, events, alive = made_of(several), [], []
    terms = objective.terms

    def watched(student: See, batch: Batch) -> Iterator[Term]:
        for term in terms(student, batch):
            term.loss.register_hook(lambda _, name=term.name: events.append(name))
            alive.append(weakref.ref(term.loss))
            yield term

    objective.terms = watched  # type: ignore[method-assign]
    seen = []
    objective.student.register_forward_pre_hook(lambda *_: seen.append([ref() is not None for ref in alive]))
    objective.student.register_forward_pre_hook(lambda *_: events.append("view"))
    gradients(objective)
    assert events[0] == "view"
    assert sorted(events[1:3]) == ["a/0", "b/0"]
    assert events[3] == "view"
    assert sorted(events[4:]) == ["a/1", "b/1", "c/1"]
    assert seen[0] == []
    assert not seen[1][0]  # of the last term the generator itself still holds the loop's variable


def test_one_that_yields_nothing_is_named() -> None:
    objective = made_of(nothing)
    before = copy.deepcopy(objective.trained.state_dict())
    optim = OptimConfig(name="sgd", warmup_epochs=0.0)
    optimizer = build_optimizer(objective.trained, optim, set())
    accelerator = build_accelerator("fp32")
    state = State(objective.trained, None, accelerator.prepare(optimizer))
    with pytest.raises(UserError, match="objective 'nothing' yields no term for a batch") as caught:
        make_step(accelerator, objective.student, objective, state, make_batch(), Plan(9, 3, 6, TrainConfig(), optim))
    assert "\n" not in str(caught.value)
    assert state.progress.step == 0
    assert all(torch.equal(value, before[key]) for key, value in objective.trained.state_dict().items())


def test_names_of_objectives_are_found_and_kept(tiny_run: TinyRun, tmp_path: Path) -> None:
    made_of(several)
    register_objective("several")(several)  # the same again, as a notebook's cell does
    for name in ("several", "supervised", "dino", "auto"):
        with pytest.raises(UserError, match="choose another name"):
            register_objective(name)(nothing)
    with pytest.raises(UserError) as caught:
        registered_objective("severl")
    assert "objective.name=severl is not registered; did you mean 'several'" in str(caught.value)
    out = tmp_path / "run"
    said = refused("train", "restv2_nano", "--data", tiny_run.data, "--out", out, "objective.name=supervize")
    assert "objective.name=supervize is not registered; did you mean 'supervised'" in said
    assert not out.exists()


def test_names_of_tasks_are_found_and_kept() -> None:
    class Other(Classify):
        name = "other"

    class Taken(Classify):
        name = "multilabel"

    register_task(register_task(Other))
    assert task_class("other") is Other
    assert load_recipe("nano", ["task=other"]).task == "other"
    for name in ("multilabel", "auto"):
        Taken.name = name
        with pytest.raises(UserError, match=f"task '{name}' is there already: choose another name"):
            register_task(Taken)
    with pytest.raises(UserError) as caught:
        load_recipe("nano", ["task=clasify"])
    assert "task=clasify is not registered; did you mean 'classify'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_loss_of_a_task_is_what_its_recipe_settled() -> None:
    recipe = load_recipe("nano", ["objective.loss=bce"])
    objective = Classify().settle(recipe.configs)
    assert objective.loss == "bce"
    task = Classify(classes=("a", "b")).with_loss(objective.loss)
    assert task == replace(Classify(classes=("a", "b")), label="bce")
    assert task.loss(torch.zeros(1, 2), torch.tensor([0]))[0] == "bce"


def test_a_task_that_lacks_a_method_is_named_when_it_is_registered() -> None:
    class Half(ImageTask):
        name = "half"
        metrics = ()

        def read(self, record: Record) -> int:
            return 0

    with pytest.raises(UserError, match="task 'half' lacks answer, evaluators, loss"):
        register_task(Half)
