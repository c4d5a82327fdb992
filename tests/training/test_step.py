"""One step: in parts as in one piece, recomputed as stored, with parts frozen, and not made when not finite."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.models.zoo import SMALL, build
from torch import Tensor

from anyres.config import UserError
from anyres.flow import Batch, Labels
from anyres.models.contract import Backbone
from anyres.models.trainable import freeze
from anyres.tasks.classify import Classify
from anyres.training.objectives import DistillationConfig, ObjectiveConfig
from anyres.training.objectives.supervised import Supervised
from anyres.training.optim import build_optimizer
from anyres.training.parallel import build_accelerator
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State, build_ema, update_ema
from anyres.training.step import NonFiniteLoss, make_step, split

SIZES = ((40, 40), (32, 24))


def make_batch(count: int = 7, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    views = tuple(torch.randn(count, 3, h, w) for h, w in SIZES)
    return Batch(views, Labels(torch.randn(2, count, 5).softmax(-1), per_view=True), torch.arange(count))


def run(model: Backbone, steps: int = 2, *, objective: ObjectiveConfig | None = None, **changes: object) -> State:
    """``steps`` steps of ``model``, with a moving average."""
    accelerator = build_accelerator("fp32")
    optim = OptimConfig(lr=1e-2, warmup_epochs=0.0, name="sgd")
    plan = Plan(100, 10, 7, TrainConfig(**changes), optim)
    optimizer = accelerator.prepare(build_optimizer(model, optim, model.no_weight_decay()))
    state = State(model, build_ema(model, 0.9), optimizer)
    config = objective or ObjectiveConfig(consistency="smooth_l1")
    teacher = (lambda view: view.mean((2, 3)) @ torch.ones(3, 5)) if config.distillation.kind != "none" else None
    made = Supervised(model, config, Classify().loss, teacher)
    for step in range(steps):
        make_step(accelerator, made.student, made, state, make_batch(seed=step), plan)
        state.progress.step += 1
    return state


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_has_a_fixed_decay_unless_it_warms_up(warmup: bool) -> None:
    """Of the papers' code: a_t = d a_(t-1) + (1 - d) w_t from the first step on, a_0 being the first weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    ema, decay = build_ema(model, 0.9, warmup), 0.9
    assert ema is not None
    expected = model.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
            expected = decay * expected + (1 - decay) * model.weight
        update_ema(ema, model, step)
    assert torch.allclose(ema.module.weight, expected) == (not warmup)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], msg=key, **tolerance)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_step_in_parts_is_the_step_in_one_piece(parts: int) -> None:
    """For a family without batch norm, and its moving average moves once per step, not once per part."""
    how = DistillationConfig(kind="soft", teacher="x", alpha=0.3)
    objective = ObjectiveConfig(consistency="smooth_l1", target="logit", distillation=how)
    whole, cut = (run(build("deit3"), objective=objective, accumulate=n) for n in (1, parts))
    assert_close(whole.model.state_dict(), cut.model.state_dict(), rtol=2e-5, atol=2e-7)
    assert whole.ema is not None
    assert cut.ema is not None
    assert_close(whole.ema.module.state_dict(), cut.ema.module.state_dict(), rtol=2e-5, atol=2e-7)
    start = build("deit3").state_dict()
    assert not torch.allclose(start["head.weight"], whole.model.state_dict()["head.weight"], rtol=1e-3)


def test_parts_hold_every_image_once() -> None:
    batch = make_batch(7)
    for parts in (1, 2, 3, 4, 7, 9):
        made = list(split(batch, parts))
        assert len(made) <= parts
        assert torch.equal(torch.cat([part.index for part in made]), batch.index)
        assert torch.equal(torch.cat([part.targets.value for part in made], 1), batch.targets.value)
        for i in range(2):
            assert torch.equal(torch.cat([part.views[i] for part in made]), batch.views[i])


@pytest.mark.parametrize("family", ["restv2", "deit3", "patchconvnet"])
def test_blocks_run_again_drop_the_same_and_give_the_same_step(family: str) -> None:
    stored, again = build(family, drop_path=0.3), build(family, drop_path=0.3)
    again.set_grad_checkpointing()
    assert_close(run(stored, 1).model.state_dict(), run(again, 1).model.state_dict(), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("what", ["attention", "head"])
@pytest.mark.parametrize("family", SMALL)
def test_only_what_is_to_be_trained_moves(family: str, what: str) -> None:
    model = build(family)
    if family == "resmlp" and what == "attention":
        with pytest.raises(UserError, match=r"train\.trainable=attention: resmlp_nano has no attention"):
            freeze(model, "attention")
        return
    freeze(model, what)
    before = copy.deepcopy(model.state_dict())
    state = run(model, 1, trainable=what)
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    for key in moved:
        part = key.split(".")
        assert part[0] in ("head", "head_dist") or (
            what == "attention" and ({"attn", "attn1"} & set(part) or part[0] == "pos_embed")
        )
    assert {"head.0.weight" if family == "patchconvnet_multi" else "head.weight"} <= moved
    if what == "attention":
        names = {".".join(key.split(".")[:-2]) for key in moved if {"attn", "attn1"} & set(key.split("."))}
        assert names
        if family.startswith("patchconvnet"):  # the trunk's convolutions are called attn too
            assert all(name.startswith("blocks_token_only") for name in names)
        if family == "threethings":
            assert {"blocks.0.attn", "blocks.0.attn1"} <= names


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where: str) -> None:
    accelerator = build_accelerator("fp32")
    model = build("rest")  # with batch norm
    optim = OptimConfig(warmup_epochs=0.0)
    optimizer = accelerator.prepare(build_optimizer(model, optim, set()))
    state = State(model, build_ema(model, 0.9), optimizer)
    before = copy.deepcopy((state.model.state_dict(), state.ema.module.state_dict(), state.progress))
    batch = make_batch()
    if where == "loss":
        batch.views[1][0, 0, 0, 0] = float("nan")
    else:
        model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    objective = Supervised(model, ObjectiveConfig(), Classify().loss)
    with pytest.raises(NonFiniteLoss, match="not finite at step 0") as caught:
        make_step(accelerator, objective.student, objective, state, batch, Plan(9, 3, 7, TrainConfig(), optim))
    assert caught.value.index is batch.index
    assert_close(before[0], state.model.state_dict(), rtol=0.0, atol=0.0)
    assert_close(before[1], state.ema.module.state_dict(), rtol=0.0, atol=0.0)
    assert state.progress == before[2]
