"""ResT v1, what is its own: the heads' mixing and instance norm, initialisation, layers, sizes from one pixel up."""

import copy
import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay
from torch import Tensor
from torch.export import Dim, export

from anyres.config import UserError
from anyres.models import rest
from anyres.models.rest import Attention, ResT, ResTConfig
from anyres.ops.residual import DropPath

SMALL = {"dims": (8, 16, 32, 64), "depths": (1, 2, 1, 1), "num_classes": 5}


def build(**options: object) -> ResT:
    """Small, with every parameter random: a fresh model has zeros where a mistake could hide."""
    torch.manual_seed(0)
    model = ResT(ResTConfig(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


MODEL = build()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 3))
@torch.no_grad()
def test_mixed_attention_is_convolution_softmax_instance_norm(heads: int, queries: int, keys: int, batch: int) -> None:
    """Operation by operation as the paper has it, with PyTorch's instance norm wherever that takes the plane."""
    torch.manual_seed(queries * 100 + keys)
    attention = Attention(heads * 4, heads, 1).double()
    query = torch.randn(batch, heads, queries, 4, dtype=torch.float64)
    key, value = torch.randn(2, batch, heads, keys, 4, dtype=torch.float64)
    mixing = attention.transform_conv
    plane = F.conv2d(query @ key.transpose(-2, -1) / 2, mixing.weight, mixing.bias).softmax(-1)
    plane = F.instance_norm(plane) if queries * keys > 1 else torch.zeros_like(plane)
    expected = (plane @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.attend_mixed(query, key, value), expected, rtol=1e-9, atol=1e-9)


def test_heads_are_mixed_only_where_there_are_several() -> None:
    mixing = {key.split(".")[0] for key in build(heads=(1, 2, 1, 4)).state_dict() if "transform_conv" in key}
    assert mixing == {"stage2", "stage4"}


@torch.no_grad()
def test_statistics_are_taken_in_float32() -> None:
    """700 x 90 elements of 1/90 within 1 %: a plane of bf16 knows them to half a percent, and the result is far off."""
    torch.manual_seed(0)
    attention = Attention(8, 2, 1)
    attention.transform_conv.bias.zero_()
    query, key, value = torch.randn(1, 2, 700, 4), torch.randn(1, 2, 90, 4), torch.randn(1, 2, 90, 4)
    query *= 0.01
    expected = attention.attend_mixed(query, key, value)
    half = attention.bfloat16().attend_mixed(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - expected).abs().max() < 0.05 * expected.abs().max()


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 140), width=st.integers(1, 140))
@torch.no_grad()
def test_grids_round_up_at_every_size(height: int, width: int) -> None:
    x = image(height, width)
    final, maps = MODEL.forward_intermediates(x)
    for i, stage in enumerate(maps):
        stride = 4 * 2**i
        assert stage.shape == (2, SMALL["dims"][i], math.ceil(height / stride), math.ceil(width / stride))
    assert MODEL.forward_head(final).isfinite().all()
    torch.testing.assert_close(MODEL(x)[1:], MODEL(x[1:]), rtol=1e-4, atol=1e-5)  # batch-mates do not count


@torch.no_grad()
def test_one_token_attends_to_nothing() -> None:
    """32 px leave one token in stage 4, where official code raises: the attention is its projection's bias alone."""
    block = MODEL.stage4[0].double()
    x = torch.randn(1, 1, 64, dtype=torch.float64)
    torch.testing.assert_close(block.attn(x, (1, 1)), block.attn.proj.bias.expand(1, 1, 64))
    block.float()


@pytest.mark.parametrize(("height", "width"), [(33, 8), (65, 40), (32, 32), (3, 2)])
def test_training_at_odd_sizes_reaches_every_parameter(height: int, width: int) -> None:
    model = build().train()
    model(image(height, width)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(("height", "width"), [(33, 1), (3, 2)])
def test_autocast_of_one_column_is_finite(height: int, width: int) -> None:
    """A plain third convolution of the stem is not, in half of all tries at these widths (oneDNN, bf16)."""
    for _ in range(6):
        model = build(dims=(64, 128, 64, 64), depths=(1, 1, 1, 1)).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(image(height, width)).float().square().sum()
        loss.backward()
        assert [name for name, p in model.named_parameters() if not p.grad.isfinite().all()] == []


def test_checkpointing_changes_no_gradient() -> None:
    model = build().train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    for each in (model, twin):
        each(image(70, 40)).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


@torch.no_grad()
def test_an_exported_model_takes_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 33 px on: the exporter takes a size of one, as of the last grid below, for a constant."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a free size is no int
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    model = build(depths=(1, 1, 1, 1))
    exported = export(model, (image(97, 80),), dynamic_shapes=(free,)).module()
    for height, width, batch in ((64, 64, 2), (33, 225, 1), (130, 70, 5)):
        x = image(height, width, batch)
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def test_initialisation() -> None:
    """Truncated normal weights; linear biases zero, convolutions' PyTorch's; norms one and zero. All of it."""
    with torch.device("meta"):
        model = ResT(ResTConfig(num_classes=7))
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(math.nan if tensor.is_floating_point() else -1)
    torch.manual_seed(0)
    model.init_weights()
    state = model.state_dict()
    for key, tensor in state.items():
        owner, leaf = key.rsplit(".", 1)
        weight = state.get(f"{owner}.weight")
        if tensor.ndim == 0:
            assert tensor == 0, key
        elif tensor.ndim > 1:
            error = 5 / (2 * tensor.numel()) ** 0.5
            assert tensor.std().item() == pytest.approx(0.02, rel=max(error, 0.02)), key
        elif weight.ndim == 4:
            bound = weight[0].numel() ** -0.5
            assert 0 < tensor.abs().max() <= bound, key
            assert tensor.numel() < 64 or tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.3), key
        else:
            assert (tensor == (leaf in ("weight", "running_var"))).all(), key


def test_stochastic_depth_rises_over_all_blocks() -> None:
    rates = [m.drop_prob for m in build(drop_path=0.4).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_layers_are_numbered_as_those_of_version_2() -> None:
    """ResT v1's layers are counted like version 2's; the authors' own layer decay fails on the name patch_embed_2."""
    model = build()
    assert model.no_weight_decay() == set()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scale.keys() == set(names.values())
    order = ["stem.conv1", "stage1.0.attn.q", "patch_embed_2.conv", "stage2.0.attn.q", "stage2.1.attn.q"]
    order += ["patch_embed_3.conv", "stage3.0.attn.q", "patch_embed_4.conv", "stage4.0.attn.q", "head"]
    assert [scale[f"{name}.weight"] for name in order] == [2.0**-i for i in range(9, -1, -1)]
    assert scale["norm.weight"] == scale["head.weight"]


def test_preprocessing_is_that_of_the_published_evaluation() -> None:
    cfg = build(in_chans=1).pretrained_cfg
    assert (cfg["crop_pct"], cfg["input_size"], cfg["num_classes"]) == (0.875, (1, 224, 224), 5)
    assert build(in_chans=1).get_submodule(cfg["first_conv"]).in_channels == 1


def test_variants() -> None:
    depths = {name: sum(config.depths) for name, config in rest.VARIANTS.items()}
    assert depths == {"rest_lite": 8, "rest_small": 12, "rest_base": 12, "rest_large": 24}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": (3, 2, 4, 8)}, "multiples of its heads"),
        ({"dims": (7, 16, 32, 64)}, "first even"),
        ({"reductions": (3, 1, 1, 1)}, "1 or even"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"depths": (0, 1, 1, 1)}, "positive"),
        ({"num_classes": -1}, "positive"),
    ],
)
def test_impossible_options_are_one_line(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ResTConfig(**options)
    assert "\n" not in str(caught.value)
