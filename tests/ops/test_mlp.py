"""First weights and stochastic depth are timm's, number for number."""

from __future__ import annotations

import pytest
import timm.layers
import torch

from anyres.ops.mlp import Mlp, trunc_normal_
from anyres.ops.residual import DropPath


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_weights_are_drawn_as_timm_draws_them(std: float) -> None:
    torch.manual_seed(5)
    theirs = timm.layers.trunc_normal_(torch.empty(50, 40), std=std)
    torch.manual_seed(5)
    torch.testing.assert_close(trunc_normal_(torch.empty(50, 40), std), theirs, rtol=0, atol=0 if std == 0.02 else 1e-6)


@pytest.mark.parametrize("shape", [(64, 3, 2), (64, 3, 2, 2)])
def test_branches_are_dropped_as_timm_drops_them(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for drop in (0.0, 0.3):
        torch.manual_seed(7)
        theirs = timm.layers.DropPath(drop)(x)
        torch.manual_seed(7)
        assert torch.equal(DropPath(drop)(x), theirs)
        assert torch.equal(DropPath(drop).eval()(x), x)


def test_an_mlp_takes_timms_weights() -> None:
    theirs = timm.layers.Mlp(6, 24)
    ours = Mlp(6, 24)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 6)
    assert torch.equal(ours(x), theirs(x))
