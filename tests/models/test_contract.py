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
from anyres.models.contract import take_indices
from tests.models.zoo import SMALL, build, image


@pytest.mark.parametrize("family", SMALL)
def test_logits_are_the_classifier_of_the_pooled_features(family: str) -> None:
    model, specials = build(family), SMALL[family].specials
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
        assert tokens.shape[::2] == (2, model.feature_info[-1]["num_chs"])
        if specials:
            torch.testing.assert_close(features[:, :specials].flatten(1), pooled)
            torch.testing.assert_close(features[:, specials:], tokens)
        else:
            torch.testing.assert_close(tokens.mean(1), pooled)


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_intermediates(family: str) -> None:
    model, x = build(family).eval(), image(65, 40)
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


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_timms_feature_wrapper_takes_it(family: str) -> None:
    wrapped = FeatureGetterNet(build(family).eval(), out_indices=(1, 3))
    maps = wrapped(image())
    assert [m.shape[1] for m in maps] == wrapped.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == wrapped.feature_info.reduction()


@pytest.mark.parametrize("family", SMALL)
def test_reset_classifier(family: str) -> None:
    model = build(family).to(torch.float64)
    model.reset_classifier(11)
    assert model.num_classes == 11
    assert model(image().double()).shape == (2, 11)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model.reset_classifier(0)
    assert model(image().double()).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool="token" if SMALL[family].specials else "avg")
    assert model(image().double()).shape == (2, 3)
    with pytest.raises(UserError, match="one pooling"):
        model.reset_classifier(3, global_pool="max")
    headless = build(family, classes=0)
    assert headless(image()).shape == (2, headless.num_features)


@pytest.mark.parametrize("family", SMALL)
def test_pretrained_cfg(family: str) -> None:
    model = build(family, in_chans=1)
    cfg = model.pretrained_cfg
    assert 0.8 < cfg["crop_pct"] <= 1
    assert cfg["interpolation"] == "bicubic"
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert cfg["architecture"] == SMALL[family].name
    assert cfg["num_classes"] == 5
    assert cfg["input_size"][0] == 1
    assert model.get_submodule(cfg["first_conv"]).in_channels == 1
    # What depends on the number of classes is named, and nothing else is.
    names = (cfg["classifier"],) if isinstance(cfg["classifier"], str) else cfg["classifier"]
    own, others = (
        {k: t.shape for k, t in m.state_dict().items()} for m in (model, build(family, classes=7, in_chans=1))
    )
    differing = {key.split(".")[0] for key in own | others if own.get(key) != others.get(key)}
    assert differing == set(names)
    assert model(torch.randn(2, *cfg["input_size"])).shape == (2, 5)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("coarse", [True, False])
def test_every_parameter_has_a_layer(family: str, coarse: bool) -> None:
    """Layers run from the stem at 0 to the head at last, along the flow."""
    model = build(family)
    layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert layers.keys() == {key for key, _ in model.named_parameters()}
    assert layers["head.0.weight" if family == "patchconvnet_multi" else "head.weight"] == max(layers.values())
    assert layers[f"{model.pretrained_cfg['first_conv']}.weight"] == 0
    if family == "restv2":
        # The stem, 4 stages or 5 blocks and 3 downsamplings, the head with the norm.
        assert len(set(layers.values())) == (6 if coarse else 10)
        order = [layers[k] for k in ("stage1.0.norm1.weight", "patch_2.proj.weight", "stage2.0.norm1.weight")]
        assert order == ([1, 2, 2] if coarse else [1, 2, 3])
        assert order[2] < layers["patch_3.proj.weight"] < layers["patch_4.proj.weight"]
        assert layers["norm.weight"] == layers["head.weight"]
    elif family == "rest":
        order = [layers[k] for k in ("stage1.0.norm1.weight", "patch_embed_2.conv.weight", "stage2.0.norm1.weight")]
        assert order == ([1, 2, 2] if coarse else sorted(set(order)))
        assert order[2] < layers["patch_embed_3.conv.weight"]
    else:
        order = [max(layer for key, layer in layers.items() if key.startswith(f"blocks.{i}.")) for i in range(4)]
        assert order == sorted(set(order))
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_no_weight_decay() -> None:
    with torch.device("meta"):
        names = create_model("resformer_tiny").no_weight_decay()
    assert len(names) == 27
    assert {"cls_token", "pos_embed.embed_layer.weight", "blocks.11.attn.get_v.bias"} < names
    assert build("restv2").no_weight_decay() == build("resmlp").no_weight_decay() == set()


@pytest.mark.parametrize("family", SMALL)
def test_checkpointing_changes_no_gradient(family: str) -> None:
    model = build(family)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    model(image(40, 72)).square().sum().backward()
    twin(image(40, 72)).square().sum().backward()
    for (key, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, k=key: f"{k}: {m}")
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("size", [(64, 64), (50, 77)])
@torch.no_grad()
def test_pure_bfloat16_and_channels_last(family: str, size: tuple[int, int]) -> None:
    model, x = build(family).eval(), image(*size)
    expected = model(x)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(last), expected, rtol=1e-4, atol=1e-5)
    half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.05 * expected.abs().max() + 0.01


@pytest.mark.parametrize("family", SMALL)
def test_autocast(family: str) -> None:
    model = build(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(image(50, 77)).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(family: str) -> None:
    model, x = build(family).eval(), image(50, 77)
    torch.testing.assert_close(model(x)[1:], model(x[1:]), rtol=1e-4, atol=1e-6)
