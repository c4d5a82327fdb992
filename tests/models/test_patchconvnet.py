"""PatchConvNet: what is its own. Parity with the official code is in test_parity.py and test_fingerprints.py."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._manipulate import group_parameters
from torch import Tensor

from anyres.config import UserError, override
from anyres.models.patchconvnet import VARIANTS, ClassifierPerToken, Config, Model
from anyres.ops.residual import DropPath

BOTH = pytest.mark.parametrize("multi", [False, True])
sides = st.integers(1, 100)


def build(**options: object) -> Model:
    """Small, with every parameter random: fresh gammas would hide the branches."""
    torch.manual_seed(0)
    model = Model(override(Config(dim=32, depth=3, num_classes=5, init_scale=0.5), options, "PatchConvNet")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODELS = {multi: build(multi=multi) for multi in (False, True)}


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


@pytest.mark.parametrize("name", VARIANTS)
def test_initialisation(name: str) -> None:
    """On storage full of NaN: truncated normal 0.02 and PyTorch's default where they belong, gammas as published."""
    with torch.device("meta"):
        model = Model(override(VARIANTS[name], {"dim": 128, "depth": 2, "num_classes": 100}, name))
    model = model.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights()
    scale = 1e-4 if name.startswith("S60") else 1e-6
    for key, tensor in model.state_dict().items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf.startswith("gamma"):
            assert (tensor == torch.tensor(scale)).all(), key
        elif "norm" in key:
            assert (tensor == (leaf == "weight")).all(), key
        elif tensor.ndim == 4:  # a convolution: uniform in +-1 / sqrt(fan in), as is its bias
            bound = tensor[0].numel() ** -0.5
            assert tensor.abs().max() <= bound, key
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), key
        elif "qkv_pos" in key:
            assert tensor.isfinite().all(), key
            assert tensor.std() > 0, key
        elif leaf == "bias":
            assert (tensor == 0).all(), key
        else:
            error = 0.02 * (2 * tensor.numel()) ** -0.5
            assert abs(tensor.std().item() - 0.02) < 5 * error, key


def test_stochastic_depth_is_constant_in_the_trunk_and_absent_in_the_aggregation() -> None:
    model = build(drop_path=0.3)
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.3, 0.3, 0.3]
    assert not any(isinstance(module, DropPath) for module in model.blocks_token_only.modules())
    assert not torch.equal(model.train()(image(32, 32)), model(image(32, 32)))


@BOTH
def test_no_weight_decay_and_layers(multi: bool) -> None:
    """The class token is where it enters: with the aggregation, so layer-wise decay does not freeze fresh ones."""
    model = MODELS[multi]
    assert model.no_weight_decay() == {"cls_token"}
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == dict(model.named_parameters()).keys()
    head = "head.4.bias" if multi else "head.bias"
    keys = ["patch_embed.proj.6.0.weight", *(f"blocks.{i}.gamma_1" for i in range(3)), "cls_token", head]
    assert [layers[key] for key in keys] == [0, 1, 2, 3, 4, 5]
    assert layers["blocks_token_only.0.attn.q.weight"] == layers["norm.weight"] == 4


@BOTH
@settings(max_examples=25, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_every_size(multi: bool, height: int, width: int) -> None:
    model, x, grid = MODELS[multi], image(height, width), (math.ceil(height / 16), math.ceil(width / 16))
    features, maps = model.forward_intermediates(x)
    assert [m.shape for m in maps] == [(2, 32, *grid)] * 3
    assert features.shape == (2, (5 if multi else 1) + math.prod(grid), 32)
    torch.testing.assert_close(model.patch_tokens(features), model.norm(maps[-1].flatten(2).mT))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features) == (2, 160 if multi else 32)
    logits = model.get_classifier()(pooled)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, model(x))
    attention = model.attention_map(x)
    assert attention.shape == (2, 5 if multi else 1, *grid)
    assert (attention > 0).all()
    total = attention.sum(dim=(2, 3))
    if multi:
        torch.testing.assert_close(total, torch.ones(2, 5))
    else:
        assert (total < 1).all()  # the rest is the class token's attention to itself


@BOTH
@settings(max_examples=15, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_rows_are_to_columns_as_columns_to_rows(multi: bool, height: int, width: int) -> None:
    """With its kernels transposed the model sees a transposed image as it saw the image; so no grid is folded."""
    model, x = MODELS[multi], image(height, width)
    turned = copy.deepcopy(model)
    for module in turned.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.copy_(module.weight.mT.clone())
    torch.testing.assert_close(turned(x.mT), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turned.attention_map(x.mT).mT, model.attention_map(x), rtol=1e-4, atol=1e-5)


@BOTH
@torch.no_grad()
def test_the_border_is_seen(multi: bool) -> None:
    model, x = MODELS[multi], image(70, 67)
    for edge in ((..., -1, slice(None)), (..., slice(None), -1)):
        other = x.clone()
        other[edge] += 1
        assert (model(x) - model(other)).abs().max() > 1e-5


@BOTH
@pytest.mark.parametrize(("height", "width"), [(40, 1), (1, 40), (64, 16)])
def test_training_in_bfloat16_on_one_column_or_row(multi: bool, height: int, width: int) -> None:
    model = copy.deepcopy(MODELS[multi]).train()
    for _ in range(6):  # oneDNN's fault, which the convolutions avoid, comes now and then
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(image(height, width)).float().square().sum()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@BOTH
def test_checkpointing_changes_no_gradient(multi: bool) -> None:
    model = build(multi=multi).train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    for one in (model, twin):
        one(image(40, 72)).square().sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, k=key: f"{k}: {m}")


@torch.no_grad()
def test_a_hook_sees_and_changes_the_scores() -> None:
    model, x, seen = build(), image(32, 48), []
    before = model.attention_map(x)

    def hide_itself(_: object, __: object, scores: Tensor) -> Tensor:
        seen.append(scores.clone())
        return scores.index_fill(3, torch.tensor([0]), -math.inf)

    handle = model.blocks_token_only[0].attn.id.register_forward_hook(hide_itself)
    after = model.attention_map(x)
    assert seen[0].shape == (2, 1, 1, 1 + 2 * 3)
    torch.testing.assert_close(before.flatten(2), seen[0][:, 0].softmax(dim=2)[:, :, 1:])
    torch.testing.assert_close(after.sum(dim=(2, 3)), torch.ones(2, 1))
    assert not torch.equal(model(x), MODELS[False](x))
    handle.remove()
    torch.testing.assert_close(model(x), MODELS[False](x))


@torch.no_grad()
def test_class_tokens_do_not_see_each_other() -> None:
    """Another token for class 2, and only logit and map 2 change."""
    model, x = build(multi=True), image(48, 32)
    logits, maps = model(x), model.attention_map(x)
    model.cls_token[:, 2] += torch.randn(32)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(model(x)[:, others], logits[:, others])
    torch.testing.assert_close(model.attention_map(x)[:, others], maps[:, others])
    assert (model(x)[:, 2] - logits[:, 2]).abs().min() > 1e-3
    assert (model.attention_map(x)[:, 2] - maps[:, 2]).abs().max() > 1e-4


def test_the_classifier_per_token_is_its_linears() -> None:
    torch.manual_seed(0)
    head, tokens = ClassifierPerToken(8, 5), torch.randn(3, 5, 8)
    expected = torch.cat([linear(tokens[:, i]) for i, linear in enumerate(head)], dim=1)
    torch.testing.assert_close(head(tokens.flatten(1)), expected)


@BOTH
def test_reset_classifier(multi: bool) -> None:
    model = build(multi=multi).double()
    token, x = model.cls_token, image(20, 40).double()
    for classes in (11, 0, 3):
        model.reset_classifier(classes, global_pool="token")
        tokens = max(classes, 1) if multi else 1
        assert model.num_classes == classes
        assert model.num_features == 32 * tokens
        assert model.cls_token.shape == (1, tokens, 32)
        assert all(p.dtype == torch.float64 and p.isfinite().all() for p in model.parameters())
        assert model(x).shape == (2, classes or 32)
        assert model.attention_map(x).shape == (2, tokens, 2, 3)
    assert (model.cls_token is token) is not multi
    biases = [p for key, p in model.head.named_parameters() if key.endswith("bias")]
    assert torch.cat(biases).eq(0).all()
    with pytest.raises(UserError, match="one pooling"):
        model.reset_classifier(3, global_pool="avg")


@BOTH
def test_the_classifier_is_named_in_full(multi: bool) -> None:
    """``pretrained_cfg["classifier"]`` names whatever depends on the number of classes, and nothing else."""
    shapes = [{k: v.shape for k, v in build(multi=multi, num_classes=n).state_dict().items()} for n in (3, 4)]
    differ = {key.split(".")[0] for key in shapes[0] | shapes[1] if shapes[0].get(key) != shapes[1].get(key)}
    named = MODELS[multi].pretrained_cfg["classifier"]
    assert differ == set(named if multi else (named,))
    first = MODELS[multi].get_submodule(MODELS[multi].pretrained_cfg["first_conv"])
    assert first.in_channels == 3


@pytest.mark.parametrize(
    "options", [{"dim": 0}, {"dim": 36}, {"depth": 0}, {"in_chans": 0}, {"num_classes": -1}, {"drop_path": 1.0}]
)
def test_impossible_options_are_one_line(options: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        build(**options)
    assert "\n" not in str(caught.value)
