"""Schedule check values of the specification (recipes T, row F1 S) and the weight-decay groups (recipes 0.5)."""

import pytest

from anyres import create_model
from anyres.train.optim import OptimConfig, build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0.0, 0.0), (1.0, 2e-4), (2.5, 5e-4), (5.0, 1e-3), (150.0, 5.18177e-4), (299.5, 1.0007e-5)]
)
def test_resformer_schedule_check_values(epoch: float, expected: float) -> None:
    config = OptimConfig(lr=5e-4, lr_batch=512, min_lr=1e-5, warmup_epochs=5.0)
    rate = learning_rate(round(epoch * 1250), config.peak_lr(1024), config, 1250, 300 * 1250)
    assert rate == pytest.approx(expected, rel=2e-5)


def test_warmup_longer_than_the_run_stays_finite() -> None:
    config = OptimConfig(warmup_epochs=20.0)
    assert [learning_rate(s, 1.0, config, 1, 4) for s in range(4)] == [0.0, 0.25, 0.5, 0.75]


def test_resformer_does_not_decay_vectors_biases_and_named_parameters() -> None:
    model = create_model("resformer_tiny", num_classes=10)
    named = model.no_weight_decay()
    assert len(named) == 27
    groups = build_optimizer(model, OptimConfig(weight_decay=0.05), named).param_groups
    free = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim <= 1 or name.endswith(".bias") or name in named
        assert (id(parameter) in free) == exempt, name
