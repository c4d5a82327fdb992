"""Initialisation: nothing is left as memory was, and every tensor has the spec's distribution."""

import math

import pytest
import torch
from timm.layers import DropPath

from anyres.models import create_model
from anyres.models.contract import Backbone

NANO = ["resformer_nano", "restv2_nano", "resmlp_nano"]


def reinitialised(name: str, **options: object) -> Backbone:
    """Built without storage, given storage full of NaN, then initialised."""
    with torch.device("meta"):
        model = create_model(name, **options)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(math.nan if tensor.is_floating_point() else -1)
    model.init_weights()
    return model


@pytest.mark.parametrize("name", NANO)
def test_every_tensor_is_initialised(name: str) -> None:
    for key, tensor in reinitialised(name).state_dict().items():
        assert tensor.isfinite().all(), key
        if key.endswith("num_batches_tracked"):
            assert tensor == 0


@pytest.mark.parametrize("name", NANO)
def test_construction_equals_initialisation(name: str) -> None:
    """Same seed, same weights up to the order of draws; what is constant is equal."""
    built, again = create_model(name).state_dict(), reinitialised(name).state_dict()
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


@pytest.mark.parametrize("name", NANO)
def test_stochastic_depth_rates(name: str) -> None:
    """Linear from 0 over all blocks; in ResMLP the same everywhere."""
    rates = [m.drop_prob for m in create_model(name, drop_path=0.3).modules() if isinstance(m, DropPath)]
    depth = len(rates)
    expected = [0.3] * depth if name.startswith("resmlp") else [0.3 * i / (depth - 1) for i in range(depth)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", NANO)
def test_stochastic_depth_acts_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, drop_path=0.9)
    x = torch.randn(4, 3, 64, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
