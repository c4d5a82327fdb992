"""Equal to the official code: logits, features, gradients, keys, parameters and MACs, under synthetic weights."""

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anyres.models import create_model
from anyres.models.contract import Backbone
from tests import golden
from tests.golden import fill

VARIANTS = sorted({name.split("@")[0] for name in golden.meta()["facts"]})
SIZES = [(variant, size) for variant in VARIANTS for size in ((224, 384) if "restv2" in variant else (224,))]
SMALLEST = {"resformer": "resformer_tiny_patch16", "rest_v2": "restv2_tiny", "resmlp": "resmlp_12"}


@lru_cache(maxsize=1)  # one large model at a time
def filled(variant: str) -> Backbone:
    model = create_model(variant).eval()
    fill.fill(model)
    return model


@pytest.fixture(autouse=True, scope="module")
def _free() -> Iterator[None]:
    yield
    filled.cache_clear()


def on_meta(variant: str) -> Backbone:
    """Shapes without storage."""
    with torch.device("meta"):
        return create_model(variant).eval()


@pytest.mark.parametrize(("variant", "size"), SIZES)
@torch.no_grad()
def test_logits(variant: str, size: int) -> None:
    family = golden.meta()["facts"][variant]["family"]
    expected = golden.arrays(f"logits_{family}")[variant if size == 224 else f"{variant}@{size}"]
    logits = filled(variant)(fill.images(2, size, size))
    tolerance = 2e-6 * expected.abs().max().item() if family == "resmlp" else 1e-5
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("variant", ["resmlp_12", "resmlp_24"])
@torch.no_grad()
def test_logits_of_resmlp_with_small_gammas(variant: str) -> None:
    """Of a size at which the last affine and the head's bias show."""
    model = create_model(variant).eval()
    fill.fill(model)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            parameter.mul_(0.1)
    expected = golden.arrays("logits_resmlp_supplement")[variant]
    torch.testing.assert_close(model(fill.images(2, 224, 224)), expected, rtol=0, atol=2e-6)


def features(model: Backbone, family: str, images: Tensor) -> dict[str, Tensor]:
    """The tensors that the golden files name."""
    caught: dict[str, Tensor] = {}
    points = {
        "resformer": {"patch_embed": "patch_embed", "block0": "blocks.0", "block_mid": "blocks.5", "norm": "norm"},
        "resmlp": {"patch_embed": "patch_embed", "block0": "blocks.0", "block_mid": "blocks.5", "norm": "norm"},
        "rest_v2": {"stem": "stem", "stage2_block0": "stage2.0", "stage4_tokens": "stage4.1"},
    }[family]
    if family != "rest_v2":
        points["block_last"] = "blocks.11"
    hooks = [
        model.get_submodule(module).register_forward_hook(
            lambda _, __, out, name=name: caught.update({name: out[0] if isinstance(out, tuple) else out})
        )
        for name, module in points.items()
    ]
    if family == "resformer":
        first = model.get_submodule("blocks.0")
        hooks.append(first.register_forward_pre_hook(lambda _, inputs: caught.update(tokens=inputs[0])))
    final, stages = model.forward_intermediates(images)
    if family == "rest_v2":
        caught |= {f"stage{i + 1}": stage for i, stage in enumerate(stages[:3])} | {"stage4": final}
    caught["pre_head"] = model.forward_head(final, pre_logits=True)
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize("family", SMALLEST)
@torch.no_grad()
def test_features(family: str) -> None:
    caught = features(filled(SMALLEST[family]), family, fill.images(2, 224, 224))
    described = golden.meta()["features"][family]["features"]
    assert caught.keys() == described.keys()
    for name, expected in golden.arrays(f"features_{family}").items():
        about = described[name]
        assert list(caught[name].shape) == about["full_shape"]
        sampled = caught[name].reshape(-1)[:: about["stride"]]
        # The reference's own rounding is up to 8e-6 (ResTv2's stage4, against our float64), 1.8e-6 of its largest.
        tolerance = 4e-6 * max(1.0, about["absmax"])
        torch.testing.assert_close(sampled, expected, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", SMALLEST)
def test_train_logits_and_gradient_norms(family: str) -> None:
    model = create_model(SMALLEST[family]).train()
    fill.fill(model)
    logits = model(fill.images(2, 224, 224))
    reference = golden.arrays("train_logits")[family]
    torch.testing.assert_close(logits, reference, rtol=0, atol=4e-6 * max(1.0, reference.abs().max().item()))
    loss = logits.square().mean()
    loss.backward()
    expected = golden.grad_norms(family)["train"]
    assert loss.item() == pytest.approx(expected["loss_float64"], rel=1e-5)
    norms = {name: p.grad.double().norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert norms.keys() == expected["grad_norm_float64"].keys()
    floor = 1e-6 * max(norms.values())
    for name, norm in norms.items():
        assert norm == pytest.approx(expected["grad_norm_float64"][name], rel=2e-5, abs=floor), name
    # What the loss cannot see: the last block's local term reaches patch tokens only, and the class token is read.
    for name in expected["theoretically_zero"]:
        assert norms[name] <= floor


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_shapes_and_parameters(variant: str) -> None:
    model, facts = on_meta(variant), golden.meta()["facts"][variant]
    names = {torch.float32: "f32", torch.int64: "i64"}
    ours = {name: (list(t.shape), names[t.dtype]) for name, t in model.state_dict().items()}
    assert ours == golden.keys(variant)
    assert len(ours) == facts["num_state_dict_keys"]
    assert sum(p.numel() for p in model.parameters()) == facts["params"]
    assert len(list(model.buffers())) == facts["num_buffers"]


@pytest.mark.parametrize("name", sorted(golden.meta()["facts"]))
def test_macs(name: str) -> None:
    facts = golden.meta()["facts"][name]
    side = facts["native_resolution"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(name.partition("@")[0])(torch.empty(1, 3, side, side, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(facts["macs"], rel=0.005)


@pytest.mark.parametrize(
    ("name", "side", "giga"),
    [
        (f"resformer_{scale}", side, giga)
        for scale, row in {
            "tiny": (0.209, 0.376, 0.600, 1.258, 4.695, 10.457),
            "small": (0.811, 1.441, 2.273, 4.608, 15.516, 31.795),
            "base": (3.193, 5.643, 8.835, 17.581, 55.536, 107.120),
        }.items()
        for side, giga in zip((96, 128, 160, 224, 384, 512), row, strict=True)
    ],
)
def test_macs_of_resformer_by_size(name: str, side: int, giga: float) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(name)(torch.empty(1, 3, side, side, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.005)
