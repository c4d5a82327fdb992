"""timm's model contract, and our few additions to it."""

import copy

import pytest
import torch
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.contract import Backbone, take_indices

NANO = ["resformer_nano", "restv2_nano", "resmlp_nano"]


def build(name: str, **options: object) -> Backbone:
    torch.manual_seed(0)
    return create_model(name, num_classes=5, **({"any_size": True} if "mlp" in name else {}), **options)


def image(height: int = 64, width: int = 64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NANO)
def test_logits_are_the_classifier_of_the_pooled_features(name: str) -> None:
    model = build(name)
    for training in (True, False):
        model.train(training)
        logits = model(image())
        features = model.forward_features(image())
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert isinstance(logits, Tensor)
        assert logits.shape == (2, model.num_classes) == (2, 5)
        torch.testing.assert_close(model.get_classifier()(pooled), logits)
        torch.testing.assert_close(model.forward_head(features), logits)
        tokens = model.patch_tokens(features)
        assert tokens.shape[0] == 2
        assert tokens.shape[2] == model.num_features
        if name == "resformer_nano":
            torch.testing.assert_close(features[:, 0], pooled)
            torch.testing.assert_close(features[:, 1:], tokens)
        else:
            torch.testing.assert_close(tokens.mean(1), pooled)


@pytest.mark.parametrize("name", NANO)
@torch.no_grad()
def test_intermediates(name: str) -> None:
    model, x = build(name).eval(), image(65, 40)
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert len(maps) == len(model.feature_info)
    for info, m in zip(model.feature_info, maps, strict=True):
        assert m.shape[1] == info["num_chs"]
        assert m.shape[2:] == (-(-65 // info["reduction"]), -(-40 // info["reduction"]))
        model.get_submodule(info["module"])
    tokens = model.forward_intermediates(x, intermediates_only=True, output_fmt="NLC")
    for m, t in zip(maps, tokens, strict=True):
        torch.testing.assert_close(m.flatten(2).mT, t)
    normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True, output_fmt="NLC")
    assert len(normed) == 1
    torch.testing.assert_close(normed[0], model.patch_tokens(final))
    chosen = model.forward_intermediates(x, indices=[-1, 1], intermediates_only=True)
    torch.testing.assert_close(chosen, [maps[-1], maps[1]])
    with pytest.raises(UserError, match="out of range"):
        model.forward_intermediates(x, indices=[99])


def test_take_indices() -> None:
    assert take_indices(12, None) == list(range(12))
    assert take_indices(12, 4) == [8, 9, 10, 11]
    assert take_indices(12, [2, -1]) == [2, 11]
    for wrong in (0, 13, [12], [-13]):
        with pytest.raises(UserError):
            take_indices(12, wrong)


@pytest.mark.parametrize("name", NANO)
@torch.no_grad()
def test_timms_feature_wrapper_takes_it(name: str) -> None:
    wrapped = FeatureGetterNet(build(name).eval(), out_indices=(1, 3))
    maps = wrapped(image())
    assert [m.shape[1] for m in maps] == wrapped.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == wrapped.feature_info.reduction()


@pytest.mark.parametrize("name", NANO)
def test_reset_classifier(name: str) -> None:
    model = build(name).to(torch.float64)
    model.reset_classifier(11)
    assert model.num_classes == 11
    assert model(image().double()).shape == (2, 11)
    assert model.get_classifier().weight.dtype == torch.float64
    assert (model.get_classifier().bias == 0).all()
    model.reset_classifier(0)
    assert model(image().double()).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool="token" if name == "resformer_nano" else "avg")
    assert model(image().double()).shape == (2, 3)
    with pytest.raises(UserError, match="one pooling"):
        model.reset_classifier(3, global_pool="max")
    headless = create_model(name, num_classes=0)
    assert headless(image()).shape == (2, headless.num_features)


@pytest.mark.parametrize("name", NANO)
def test_pretrained_cfg(name: str) -> None:
    cfg = build(name, in_chans=1).pretrained_cfg
    crops = {"resformer_nano": 0.875, "restv2_nano": 1.0, "resmlp_nano": 0.9}
    assert cfg["crop_pct"] == crops[name]
    assert cfg["interpolation"] == "bicubic"
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cfg["architecture"] == name
    assert cfg["num_classes"] == 5
    assert cfg["input_size"][0] == 1
    model = build(name, in_chans=1)
    assert model.get_submodule(cfg["first_conv"]).in_channels == 1
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model(torch.randn(2, *cfg["input_size"])).shape == (2, 5)


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("coarse", [True, False])
def test_every_parameter_has_a_layer(name: str, coarse: bool) -> None:
    """Layers run from the stem at 0 to the head at last, along the flow."""
    model = build(name)
    layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert layers.keys() == {key for key, _ in model.named_parameters()}
    assert layers["head.weight"] == max(layers.values())
    first = "stem.proj.0.weight" if name == "restv2_nano" else "patch_embed.proj.weight"
    assert layers[first] == 0
    if name == "restv2_nano":
        # The stem, 4 stages or 5 blocks (the norm with the last of them), the head.
        assert len(set(layers.values())) == (6 if coarse else 7)
        order = [layers[k] for k in ("stage1.0.norm1.weight", "patch_2.proj.weight", "stage2.0.norm1.weight")]
        assert order[0] < order[1] == order[2] < layers["patch_3.proj.weight"] < layers["patch_4.proj.weight"]
    else:
        order = [layers[f"blocks.{i}.mlp.fc1.weight"] for i in range(6)]
        assert order == sorted(set(order))
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_no_weight_decay() -> None:
    with torch.device("meta"):
        names = create_model("resformer_tiny").no_weight_decay()
    assert len(names) == 27
    assert {"cls_token", "pos_embed.embed_layer.weight", "blocks.11.attn.get_v.bias"} < names
    assert build("restv2_nano").no_weight_decay() == build("resmlp_nano").no_weight_decay() == set()


@pytest.mark.parametrize("name", NANO)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model = build(name)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    model(image(40, 72)).square().sum().backward()
    twin(image(40, 72)).square().sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, k=key: f"{k}: {m}")
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("size", [(64, 64), (50, 77)])
@torch.no_grad()
def test_pure_bfloat16_and_channels_last(name: str, size: tuple[int, int]) -> None:
    model, x = build(name).eval(), image(*size)
    expected = model(x)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(last), expected, rtol=1e-4, atol=1e-5)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max() + 0.01


@pytest.mark.parametrize("name", NANO)
def test_autocast(name: str) -> None:
    model = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(image(50, 77)).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NANO)
@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(name: str) -> None:
    model, x = build(name).eval(), image(50, 77)
    torch.testing.assert_close(model(x)[1:], model(x[1:]), rtol=1e-4, atol=1e-6)
