"""Initialisation: nothing is left as memory was, and every tensor has the spec's distribution."""

import math

import pytest
import torch

from anyres.models import create_model
from anyres.models.contract import Backbone
from anyres.ops.residual import DropPath
from tests.models.zoo import SMALL, build, image, stirred


def reinitialised(family: str) -> Backbone:
    """Built without storage, given storage full of NaN, then initialised."""
    with torch.device("meta"):
        model = build(family)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(math.nan if tensor.is_floating_point() else -1)
    model.init_weights()
    return model


@pytest.mark.parametrize("family", SMALL)
def test_every_tensor_is_initialised(family: str) -> None:
    for key, tensor in reinitialised(family).state_dict().items():
        assert tensor.isfinite().all(), key
        if key.endswith("num_batches_tracked"):
            assert tensor == 0


@pytest.mark.parametrize("family", SMALL)
def test_construction_equals_initialisation(family: str) -> None:
    """Same seed, same weights up to the order of draws; what is constant is equal."""
    built, again = build(family).state_dict(), reinitialised(family).state_dict()
    for key, tensor in built.items():
        if tensor.numel() > 1 and (tensor == tensor.flatten()[0]).all():
            torch.testing.assert_close(tensor, again[key], rtol=0, atol=0)


def is_truncated_normal(tensor: torch.Tensor) -> bool:
    """Standard deviation 0.02, within 5 of its own errors; mean zero likewise."""
    n = tensor.numel()
    return abs(tensor.std().item() / 0.02 - 1) < 5 / (2 * n) ** 0.5 and abs(tensor.mean().item()) < 5 * 0.02 / n**0.5


def is_torchs_default(weight: torch.Tensor) -> bool:
    """Uniform in +-1 / sqrt(fan in)."""
    bound = weight[0].numel() ** -0.5
    return weight.abs().max() <= bound and abs(weight.std().item() / (bound / 3**0.5) - 1) < 0.1


def test_resformer() -> None:
    state = create_model("resformer_nano").state_dict()
    for key, tensor in state.items():
        leaf = key.rsplit(".", 1)[-1]
        if "get_v" in key:
            assert (tensor == 0).all(), key
        elif key.startswith(("patch_embed", "pos_embed")):
            assert leaf == "bias" or is_torchs_default(tensor), key
            assert tensor.std() > 0
        elif "norm" in key:
            assert (tensor == (leaf == "weight")).all(), key
        elif leaf == "bias":
            assert (tensor == 0).all(), key
        else:
            assert is_truncated_normal(tensor), key


def test_restv2() -> None:
    state = create_model("restv2_nano").state_dict()
    for key, tensor in state.items():
        leaf = key.rsplit(".", 1)[-1]
        if tensor.ndim == 1:
            assert (tensor == (leaf in ("weight", "running_var"))).all(), key
        elif tensor.ndim:
            assert is_truncated_normal(tensor), key


@pytest.mark.parametrize(("name", "scale"), [("resmlp_12", 0.1), ("resmlp_24", 1e-5)])
def test_resmlp(name: str, scale: float) -> None:
    state = create_model(name, dim=32, img_size=64).state_dict()
    for key, tensor in state.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf.startswith("gamma"):
            assert (tensor == torch.tensor(scale)).all(), key
        elif leaf in ("alpha", "beta"):
            assert (tensor == (leaf == "alpha")).all(), key
        elif key.startswith("patch_embed"):
            assert leaf == "bias" or is_torchs_default(tensor), key
        elif leaf == "bias":
            assert (tensor == 0).all(), key
        else:
            assert is_truncated_normal(tensor), key


@pytest.mark.parametrize("family", ["rest", "restv2", "resformer", "resmlp", "deit", "dino"])
def test_stochastic_depth_rates(family: str) -> None:
    """Linear from 0 over all blocks; in ResMLP the same everywhere. (CaiT, DeiT III, PatchConvNet: their own tests.)"""
    rates = [m.drop_prob for m in build(family, drop_path=0.3).modules() if isinstance(m, DropPath)]
    depth = len(rates)
    expected = [0.3] * depth if family == "resmlp" else [0.3 * i / (depth - 1) for i in range(depth)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("family", SMALL)
def test_stochastic_depth_acts_in_training_only(family: str) -> None:
    model, x = stirred(build(family, drop_path=0.9)).train(), image(batch=8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
