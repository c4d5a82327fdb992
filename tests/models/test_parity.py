"""Equal to the official code: logits, features, gradients, keys, parameters and MACs, under synthetic weights."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anyres.models import create_model
from anyres.models.contract import Backbone
from anyres.models.zoo import MODEL_STATS
from anyres.ops.patch import to_tokens
from tests import golden
from tests.golden import fill

WITH_LOGITS = {
    name: family for family, rows in golden.meta()["logits"].items() for name in rows if family != "resmlp_supplement"
}
SUPPLEMENT = sorted(golden.meta()["supplement"]["logits"])
WITH_KEYS = sorted(name for name, about in golden.facts().items() if about.get("keys_file"))
GOLDEN_MODEL_STATS = sorted(golden.meta()["features"])


def synthetic(name: str, **options: Any) -> Backbone:
    """Under the synthetic weights; built without others, as drawing those takes as long as the test itself."""
    with torch.device("meta"):
        model = create_model(name, **options)
    fill.fill(model.to_empty(device="cpu"))
    return model


@lru_cache(maxsize=1)  # one large model at a time
def filled(golden_name: str) -> Backbone:
    name, options = golden.built(golden_name)
    return synthetic(name, **options).eval()


@pytest.fixture(autouse=True, scope="module")
def _free() -> Iterator[None]:
    yield
    filled.cache_clear()


def on_meta(golden_name: str) -> Backbone:
    """Shapes without storage."""
    name, options = golden.built(golden_name)
    with torch.device("meta"):
        return create_model(name, **options).eval()


@pytest.mark.parametrize("name", WITH_LOGITS)
@torch.no_grad()
def test_logits(name: str) -> None:
    family, side = WITH_LOGITS[name], golden.facts()[name]["native_resolution"]
    expected = golden.arrays(f"logits_{family}")[name]
    logits = filled(name)(fill.images(2, side, side))
    tolerance = {"resmlp": 2e-6 * expected.abs().max().item(), "rest_v1": 2e-4}.get(family, 1e-5)
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("variant", SUPPLEMENT)
@torch.no_grad()
def test_logits_of_resmlp_with_small_gammas(variant: str) -> None:
    """Of a size at which the last affine and the head's bias show."""
    model = synthetic(variant).eval()
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            parameter.mul_(0.1)
    expected = golden.arrays("logits_resmlp_supplement")[variant]
    torch.testing.assert_close(model(fill.images(2, 224, 224)), expected, rtol=0, atol=2e-6)


def points(model: Backbone, family: str, names: set[str]) -> dict[str, str]:
    """Golden feature -> the module whose output it is."""
    if family in ("rest_v1", "rest_v2"):
        last = len(model.get_submodule("stage4")) - 1  # type: ignore[arg-type]
        stages = {"stage1_block0": "stage1.0", "stage2_block0": "stage2.0", "stage4_tokens": f"stage4.{last}"}
        return {"stem": "stem"} | {name: module for name, module in stages.items() if name in names}
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]
    places = {
        "patch_embed": "patch_embed",
        "block0": "blocks.0",
        "block_mid": f"blocks.{depth // 2 - 1}",
        "block_last": f"blocks.{depth - 1}",
        "token_block0": "blocks_token_only.0",
        "token_block1": "blocks_token_only.1",
        "norm": "norm",
        "head": "head",
        "head_dist": "head_dist",
    }
    return {name: module for name, module in places.items() if name in names}


def features(model: Backbone, family: str, names: set[str], images: Tensor) -> dict[str, Tensor]:
    """The tensors that the golden files name; tuples are taken for their first part."""
    caught: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor | tuple[Tensor, ...]) -> None:
        caught[name] = value[0] if isinstance(value, tuple) else value

    hooks = [
        model.get_submodule(module).register_forward_hook(lambda _, __, out, name=name: keep(name, out))
        for name, module in points(model, family, names).items()
    ]
    if "tokens" in names:
        first = model.get_submodule("blocks.0")
        hooks.append(first.register_forward_pre_hook(lambda _, inputs: keep("tokens", inputs[0])))
    final, stages = model.forward_intermediates(images)
    pooled = model.forward_head(final, pre_logits=True)
    model.get_classifier()(pooled)
    for hook in hooks:
        hook.remove()
    if "stage4" in names:
        caught |= {f"stage{i + 1}": stage for i, stage in enumerate(stages[:3])} | {"stage4": final}
    if "pre_head_dist" in names:
        pooled, caught["pre_head_dist"] = pooled.chunk(2, dim=1)
    return caught | ({"pre_head": pooled} if "pre_head" in names else {})


@pytest.mark.parametrize("family", GOLDEN_MODEL_STATS)
@torch.no_grad()
def test_features(family: str) -> None:
    about = golden.meta()["features"][family]
    described, side = about["features"], about["resolution"]
    caught = features(filled(about["variant"]), family, set(described), fill.images(2, side, side))
    assert caught.keys() == described.keys()
    for name, expected in golden.arrays(f"features_{family}").items():
        shape, tensor = described[name]["full_shape"], caught[name]
        tensor = to_tokens(tensor) if tensor.ndim > len(shape) else tensor
        assert list(tensor.shape) == shape, name
        # The reference's own rounding is up to 8e-6 (ResTv2's stage4, against our float64), 1.8e-6 of its largest.
        tolerance = (4e-5 if family == "rest_v1" else 4e-6) * max(1.0, described[name]["absmax"])
        sampled = tensor.reshape(-1)[:: described[name]["stride"]]
        torch.testing.assert_close(sampled, expected, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", GOLDEN_MODEL_STATS)
def test_train_logits_and_gradient_norms(family: str) -> None:
    about = golden.grad_norms(family)
    name, options = golden.built(about["variant"])
    model = synthetic(name, **options).train()
    references = [array for key, array in golden.arrays("train_logits").items() if key.startswith(f"{family}/")]
    if len(references) == 2:
        outputs = model.heads(model.forward_head(model.forward_features(fill.images(2, 224, 224)), pre_logits=True))
    else:
        outputs = [model(fill.images(2, 224, 224))]
    precise = family != "rest_v1"
    for logits, reference in zip(outputs, references, strict=True):
        tolerance = (4e-6 if precise else 1e-4) * max(1.0, reference.abs().max().item())
        torch.testing.assert_close(logits, reference, rtol=0, atol=tolerance)
    loss = sum(logits.square().mean() for logits in outputs)
    loss.backward()
    expected = about["train"]
    assert loss.item() == pytest.approx(expected["loss_float64"], rel=1e-5 if precise else 1e-4)
    norms = {name: p.grad.double().norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert norms.keys() == expected["grad_norm_float64"].keys()
    floor = 1e-6 * max(norms.values())
    relative = 2e-5 if precise else 1e-4
    for name, norm in norms.items():
        if name not in expected["theoretically_zero"]:
            assert norm == pytest.approx(expected["grad_norm_float64"][name], rel=relative, abs=floor), name
    # What the loss cannot see, such as the last block's local term in ResFormer: it reaches patch tokens only.
    for name in expected["theoretically_zero"]:
        assert norms[name] <= floor, name


@pytest.mark.parametrize("name", WITH_KEYS)
def test_keys_shapes_and_parameters(name: str) -> None:
    model, facts = on_meta(name), golden.facts()[name]
    dtypes = {torch.float32: "f32", torch.int64: "i64"}
    ours = {key: (list(t.shape), dtypes[t.dtype]) for key, t in model.state_dict().items()}
    assert ours == golden.keys(name)
    assert len(ours) == facts["num_state_dict_keys"]
    assert parameters(model) == facts["params"]
    assert len(list(model.buffers())) == facts["num_buffers"]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: Backbone, side: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", sorted(golden.facts()))
def test_macs(name: str) -> None:
    facts = golden.facts()[name]
    assert macs(on_meta(name), facts["native_resolution"]) == pytest.approx(facts["macs"], rel=0.005)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in MODEL_STATS for name in MODEL_STATS[family]])
def test_the_table_of_names_tells_the_true_cost(family: str, name: str) -> None:
    """Official figures where official code runs (the tests above), our own count elsewhere."""
    stats = MODEL_STATS[family][name]
    with torch.device("meta"):
        model = create_model(name).eval()
    assert model.pretrained_cfg["input_size"] == (3, stats.size, stats.size)
    assert parameters(model) == stats.parameters
    assert len(model.state_dict()) == stats.tensors
    if stats.parameters < 400e6:  # the others' MACs are checked above
        assert macs(model, stats.size) == pytest.approx(stats.macs, rel=0.005)


@pytest.mark.parametrize(
    ("name", "side", "giga"),
    [
        (f"{family}{scale}", side, giga)
        for family, scale, sides, row in (
            ("resformer_", "tiny", (96, 128, 160, 224, 384, 512), (0.209, 0.376, 0.600, 1.258, 4.695, 10.457)),
            ("resformer_", "small", (96, 128, 160, 224, 384, 512), (0.811, 1.441, 2.273, 4.608, 15.516, 31.795)),
            ("resformer_", "base", (96, 128, 160, 224, 384, 512), (3.193, 5.643, 8.835, 17.581, 55.536, 107.120)),
            ("restv2_", "tiny", (384,), (12.629,)),
            ("deit3_", "base", (192,), (12.789,)),
            ("", "S60", (384, 512), (11.683, 20.764)),
            ("", "B60", (384,), (46.394,)),
            ("", "B120", (384,), (87.419,)),
        )
        for side, giga in zip(sides, row, strict=True)
    ],
)
def test_macs_by_size(name: str, side: int, giga: float) -> None:
    with torch.device("meta"):
        model = create_model(name).eval()
    assert macs(model, side) / 1e9 == pytest.approx(giga, rel=0.005)
