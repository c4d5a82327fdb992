"""Check values of the papers' schedules, parameter groups, layer decay of ResTv2's code, LAMB."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.zoo import SMALL, build
from torch import nn

from anyres import create_model
from anyres.config import UserError
from anyres.recipe import load_recipe
from anyres.training.optim import build_optimizer, set_rates
from anyres.training.schedule import OptimConfig, learning_rate, weight_decay

SCHEDULES = ("cosine", "inclusive_cosine", "epoch_cosine")


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0.0, 0.0), (1.0, 2e-4), (2.5, 5e-4), (5.0, 1e-3), (150.0, 5.18177e-4), (299.5, 1.0007e-5)]
)
def test_resformer_schedule_check_values(epoch: float, expected: float) -> None:
    config = OptimConfig(lr=5e-4, lr_batch=512, min_lr=1e-5, warmup_epochs=5.0)
    rate = learning_rate(round(epoch * 1250), config.peak_lr(1024), config, 1250, 300 * 1250)
    assert rate == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (1, 3.84012e-8), (31249, 1.2e-3), (31250, 1.2e-3), (100000, 7.12835e-4), (187499, 1.000e-6)],
)
def test_restv2_schedule_check_values(step: int, expected: float) -> None:
    config = OptimConfig(lr=1.5e-4, lr_batch=256, min_lr=1e-6, warmup_epochs=50.0, schedule="inclusive_cosine")
    rate = learning_rate(step, config.peak_lr(2048), config, 625, 187_500)
    assert rate == pytest.approx(expected, rel=2e-6 if step < 187499 else 1e-5)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 1e-6),
        (1, 1e-6),
        (2, 2.008e-4),
        (5, 8.002e-4),
        (6, 9.99322e-4),
        (7, 9.99023e-4),
        (150, 5.10184e-4),
        (299, 1.01086e-5),
    ],
)
def test_deit_schedule_check_values(epoch: int, expected: float) -> None:
    config = OptimConfig(lr=5e-4, lr_batch=512, min_lr=1e-5, warmup_lr=1e-6, schedule="epoch_cosine")
    first, last = (learning_rate(epoch * 1251 + i, config.peak_lr(1024), config, 1251, 300 * 1251) for i in (0, 1250))
    assert first == last == pytest.approx(expected, rel=6e-6)


def test_deit_schedule_is_timms_one_epoch_late() -> None:
    from timm.scheduler import CosineLRScheduler

    config = OptimConfig(lr=1e-3, min_lr=1e-5, warmup_lr=1e-6, schedule="epoch_cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    timms = CosineLRScheduler(optimizer, t_initial=30, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    for epoch in range(30):
        assert learning_rate(epoch * 7 + 3, 1e-3, config, 7, 210) == pytest.approx(optimizer.param_groups[0]["lr"])
        timms.step(epoch)  # DeiT's loop: after the epoch, with its own number


@pytest.mark.parametrize(
    ("step", "rate", "decay"),
    [(0, 0.0, 0.04), (25019, 1e-3, None), (25020, 1e-3, None), (125_100, 5.87237e-4, 0.22), (250_199, 1e-6, 0.4)],
)
def test_dino_schedule_check_values(step: int, rate: float, decay: float | None) -> None:
    config = OptimConfig(
        lr=5e-4,
        lr_batch=256,
        min_lr=1e-6,
        warmup_epochs=10.0,
        schedule="inclusive_cosine",
        weight_decay=0.04,
        weight_decay_end=0.4,
    )
    assert learning_rate(step, config.peak_lr(512), config, 2502, 250_200) == pytest.approx(rate, rel=2e-6)
    if decay is not None:
        assert weight_decay(step, config, 250_200) == pytest.approx(decay)


def test_rest_v1_scales_the_bounds_with_the_rate() -> None:
    values = {"lr": 5e-4, "lr_batch": 512, "min_lr": 1e-5, "warmup_lr": 1e-6, "schedule": "epoch_cosine"}
    plain, scaled = OptimConfig(**values), OptimConfig(**values, scale_bounds=True)
    assert plain.peak_lr(2048) == scaled.peak_lr(2048) == 2e-3
    assert learning_rate(0, 2e-3, plain, 10, 3000) == pytest.approx(1e-6)
    assert learning_rate(0, 2e-3, scaled, 10, 3000) == pytest.approx(4e-6)
    half_cosine = 0.5 * (1 + math.cos(math.pi * 298 / 300))
    assert learning_rate(2999, 2e-3, scaled, 10, 3000) == pytest.approx(4e-5 + (2e-3 - 4e-5) * half_cosine)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 20),
    st.integers(1, 12),
    st.floats(0, 15),
    st.floats(1e-7, 1e-4),
    st.floats(0, 1e-4),
)
def test_every_schedule_stays_between_its_bounds(
    schedule: str, per_epoch: int, epochs: int, warmup: float, first: float, low: float
) -> None:
    config = OptimConfig(schedule=schedule, warmup_epochs=warmup, warmup_lr=first, min_lr=low)
    steps = per_epoch * epochs
    rates = [learning_rate(s, 1e-3, config, per_epoch, steps) for s in range(steps)]
    assert all(min(first, low) * (1 - 1e-9) <= rate <= 1e-3 * (1 + 1e-9) for rate in rates)
    top = rates.index(max(rates))  # up, then down
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_warmup_longer_than_the_run_stays_finite() -> None:
    config = OptimConfig(warmup_epochs=20.0)
    assert [learning_rate(s, 1.0, config, 1, 4) for s in range(4)] == [0.0, 0.25, 0.5, 0.75]


def test_resformer_does_not_decay_vectors_biases_and_named_parameters() -> None:
    model = create_model("resformer_tiny", num_classes=10)
    named = model.no_weight_decay()
    assert len(named) == 27
    for layer_decay in (1.0, 0.75):
        config = OptimConfig(weight_decay=0.05, layer_decay=layer_decay)
        groups = build_optimizer(model, config, named).param_groups
        free = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
        for name, parameter in model.named_parameters():
            exempt = parameter.ndim <= 1 or name.endswith(".bias") or name in named
            assert (id(parameter) in free) == exempt, name


def restv2_layer(name: str, depths: tuple[int, ...]) -> int:
    """The layer of a ResTv2 parameter, as its code counts them."""
    part = name.split(".")
    if part[0] == "stem":
        return 0
    if part[0].startswith("patch_"):
        stage = int(part[0].removeprefix("patch_"))
        return sum(depths[: stage - 1]) + stage - 1
    if part[0].startswith("stage"):
        stage = int(part[0].removeprefix("stage"))
        return sum(depths[: stage - 1]) + int(part[1]) + stage
    assert part[0] in ("norm", "head")
    return sum(depths) + 4


@pytest.mark.parametrize("name", ["restv2_tiny", "restv2_base", "restv2_large"])
def test_layer_decay_of_restv2_is_the_published_formula(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 10)
    depths, config = model.config.depths, OptimConfig(lr=1e-3, layer_decay=0.8)
    optimizer = build_optimizer(model, config, model.no_weight_decay())
    set_rates(optimizer, 1e-3, 0.05)
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert len(groups) == len(list(model.parameters()))
    for key, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group["lr"] == pytest.approx(1e-3 * 0.8 ** (sum(depths) + 4 - restv2_layer(key, depths))), key
        assert group["weight_decay"] == (0.0 if parameter.ndim <= 1 else 0.05), key


@pytest.mark.parametrize("family", SMALL)
def test_layer_decay_rises_from_the_stem_to_the_head_in_every_family(family: str) -> None:
    model = build(family)
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5), model.no_weight_decay())
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert scale.keys() == {id(p) for p in model.parameters()}
    assert {scale[id(p)] for p in model.get_classifier().parameters()} == {1.0}
    stem = model.get_submodule(model.pretrained_cfg["first_conv"])
    assert scale[id(stem.weight)] == min(scale.values())
    layers = sorted(set(scale.values()))
    assert layers == [0.5**i for i in range(len(layers) - 1, -1, -1)]
    assert len(layers) >= 6  # stem, four blocks, head


def test_weight_decay_moves_only_where_there_is_some() -> None:
    model = build("deit")
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.04, weight_decay_end=0.4), model.no_weight_decay())
    set_rates(optimizer, 1e-3, 0.3)
    assert sorted(g["weight_decay"] for g in optimizer.param_groups) == [0.0, 0.3]


def test_lamb_is_that_of_the_papers() -> None:
    """Own clip of the global norm at 1, Adam's moments with bias correction, the trust ratio only with decay."""
    rng = np.random.default_rng(0)
    start = {"weight": rng.normal(size=(4, 3)), "bias": rng.normal(size=4)}
    grads = [{key: 3 * rng.normal(size=value.shape) for key, value in start.items()} for _ in range(3)]
    layer = nn.Linear(3, 4).double()
    layer.load_state_dict({key: torch.tensor(value) for key, value in start.items()})
    optimizer = build_optimizer(layer, OptimConfig(name="lamb", weight_decay=0.2, eps=1e-6), set())
    for gradient in grads:
        for key, parameter in layer.named_parameters():
            parameter.grad = torch.tensor(gradient[key])
        set_rates(optimizer, 0.1, 0.2)
        optimizer.step()
    w = {key: value.copy() for key, value in start.items()}
    m, v = ({key: np.zeros_like(value) for key, value in start.items()} for _ in range(2))
    for t, gradient in enumerate(grads, 1):
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
        assert norm > 1
        for key, value in gradient.items():
            g = value / norm
            m[key] = 0.9 * m[key] + 0.1 * g
            v[key] = 0.999 * v[key] + 0.001 * g**2
            update = (m[key] / (1 - 0.9**t)) / (np.sqrt(v[key] / (1 - 0.999**t)) + 1e-6)
            if key == "weight":
                update = update + 0.2 * w[key]
                update = update * np.linalg.norm(w[key]) / np.linalg.norm(update)
            w[key] = w[key] - 0.1 * update
    for key, parameter in layer.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), w[key], rtol=1e-9, err_msg=key)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("optim.schedule=linear", "optim.schedule: Input should be 'cosine'"),
        ("optim.schedule=epoch_cosine", "set optim.warmup_lr"),
        ("optim.warmup_lr=-1", "optim.warmup_lr=-1.0 must be 0 or more"),
        ("optim.scale_bounds=true", "set optim.lr_batch"),
        ("optim.weight_decay_end=-1", "optim.weight_decay=0.05 cannot go to weight_decay_end=-1.0"),
        ("optim.layer_decay=0", "optim.layer_decay=0.0 must be above 0"),
        ("optim.layer_decay=1.5", "optim.layer_decay=1.5 must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("nano", [change])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
