"""Branches computed for kept images alone give what stochastic depth gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anyres.ops.residual import DropPath, add_kept, skip_dropped
from tests.models.zoo import SMALL, build, stirred

IMAGES = torch.randn(6, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one training pass with the same draws."""
    torch.manual_seed(3)
    found = model(IMAGES)
    logits = torch.cat(found) if isinstance(found, tuple) else found
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [name for name in SMALL if name != "threethings"])
def test_each_family_trains_alike(family: str) -> None:
    model = stirred(build(family, drop_path=0.5)).train()
    torch.manual_seed(3)
    logits, gradients = step(model)
    assert skip_dropped(model)
    again, others = step(model)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-4 * float(1 + gradient.abs().max()))


def test_blocks_that_are_run_again_keep_the_same_images() -> None:
    model = stirred(build("resformer", drop_path=0.5)).train()
    skip_dropped(model)
    logits, gradients = step(model)
    model.set_grad_checkpointing()
    again, others = step(model)
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(others, gradients)


def test_nothing_is_computed_for_the_dropped() -> None:
    seen: list[int] = []

    def branch(y: Tensor) -> Tensor:
        seen.append(len(y))
        return torch.ones_like(y)

    drop = DropPath(0.75)
    torch.manual_seed(0)
    out = add_kept(torch.zeros(64, 2, 3), [branch, branch], drop)
    per_image = out[:, 0, 0] / 4
    assert seen[0] + seen[1] == int(per_image.sum())
    assert 0 < min(seen) <= max(seen) < 40
    assert set(per_image.tolist()) <= {0.0, 1.0, 2.0}


def test_where_no_image_is_kept_parameters_have_gradients_of_zero() -> None:
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 1, 3)
    torch.manual_seed(0)
    out = add_kept(x, [layer], DropPath(0.999))
    assert torch.equal(out, x)
    out.sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_without_stochastic_depth_there_is_nothing_to_skip() -> None:
    assert skip_dropped(build("deit3")) == 0
