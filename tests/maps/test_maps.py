"""Maps of attention and of gradients: slow twins against the models, sums, shapes, and what is refused."""

from __future__ import annotations

import pytest
import torch

from anyres.config import UserError
from anyres.maps.attention import attention_maps, layers_of, reader_of, recorded, top_mass
from anyres.maps.look import METHODS, look_at, method_of
from anyres.models import create_model
from anyres.models.contract import Backbone
from tests.maps.planted import CLASSES, pictures, share_in_corner, train
from tests.models.zoo import SMALL, build, image, stirred

ATTENDING = [family for family in SMALL if family != "resmlp"]
SIZE = (40, 72)  # not square, no multiple of the patch in one direction


@pytest.fixture(scope="module")
def models() -> dict[str, Backbone]:
    return {family: stirred(build(family)) for family in SMALL}


@pytest.mark.parametrize("family", ATTENDING)
def test_slow_twin_gives_what_the_model_gives(models: dict[str, Backbone], family: str) -> None:
    model = models[family]
    reader = reader_of(model)
    modules = [module for layer in layers_of(model, reader).values() for module in layer]
    assert modules
    with torch.no_grad():
        with recorded(modules) as seen:
            model(image(*SIZE))
        for module in modules:
            inputs, output = seen[module]
            twin = reader.twin(module, *inputs)
            assert (twin.output - output).abs().max() <= 1e-5 * max(1, output.abs().max())
            assert (twin.weights.sum(-1) - 1).abs().max() <= 1e-5
            first = reader.twin(module, *inputs, queries=1)
            assert torch.allclose(first.output, output[:, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ATTENDING)
def test_attention_is_a_map_of_any_size_and_changes_no_number(models: dict[str, Backbone], family: str) -> None:
    model, x = models[family], image(*SIZE)
    with torch.no_grad():
        before = model(x)
    found = attention_maps(model, x)
    stride = SMALL[family].stride
    assert found.maps.shape[2:] == (-(-SIZE[0] // stride), -(-SIZE[1] // stride))
    assert found.stride == stride
    assert torch.equal(found.logits, before)
    assert (found.maps >= 0).all()
    sums = found.maps.sum((2, 3))
    whole = SMALL[family].specials in (0, 5)  # nothing but patches is attended to
    assert (sums <= 1 + 1e-5).all()
    assert bool((sums > 1 - 1e-5).all()) == whole


def test_pooling_map_is_the_one_the_family_gives(models: dict[str, Backbone]) -> None:
    for family in ("patchconvnet", "patchconvnet_multi"):
        x = image(*SIZE)
        own = models[family].attention_map(x)  # type: ignore[operator]
        assert torch.allclose(attention_maps(models[family], x).maps, own, atol=1e-6)


def test_a_map_of_a_class_is_that_class_s_own(models: dict[str, Backbone]) -> None:
    model, x = models["patchconvnet_multi"], image(batch=1)
    every = attention_maps(model, x).maps[0]
    assert len(every) == 5
    for k in range(5):
        seen = look_at(model, x, "attention", of=k)
        assert seen.of == k
        assert torch.equal(seen.maps, every[k : k + 1])


def test_masks_hold_the_share_of_the_mass() -> None:
    maps = torch.tensor([[[0.5, 0.2], [0.1, 0.1]], [[0.25, 0.25], [0.25, 0.25]]])
    assert top_mass(maps, 0.6).tolist() == [[[True, True], [False, False]], [[False, True], [True, True]]]
    assert top_mass(maps[0], 0.4).tolist() == [[True, False], [False, False]]
    with pytest.raises(UserError, match="between 0 and 1"):
        top_mass(maps, 1.0)


@pytest.mark.parametrize("family", [*SMALL, "timm"])
def test_every_method_that_gradients_allow(models: dict[str, Backbone], family: str) -> None:
    if family == "timm":
        torch.manual_seed(0)
        model: Backbone = create_model("timm:test_convnext", 5).eval()
    else:
        model = models[family]
    x = image(*SIZE, batch=1)
    with torch.no_grad():
        before = model(x)
    for method in METHODS:
        if method == "attention" and model.traits.look is None:
            continue
        if method in ("gradients", "occlusion") and family not in ("rest", "resmlp", "timm"):
            continue  # they see the model from without
        seen = look_at(model, x, method)
        assert seen.maps.ndim == 3
        assert (seen.maps >= 0).all()
        assert seen.maps.isfinite().all()
        assert torch.allclose(seen.logits, before[0], atol=1e-5)
        if method in ("gradients", "occlusion"):
            assert seen.maps.shape == (1, *SIZE)
            assert seen.maps.any()
            assert seen.of == int(before.argmax())
    with torch.no_grad():
        assert torch.equal(model(x), before)


def test_integrated_gradients_are_whole(models: dict[str, Backbone]) -> None:
    """They sum to the logit less that of the mean color: so captum was given the right function and baseline."""
    from captum.attr import IntegratedGradients

    from anyres.maps.gradients import integrated_gradients

    model, x, target = models["resmlp"], image(batch=1), torch.tensor([2])
    with torch.no_grad():
        rise = float(model(x)[0, 2] - model(torch.zeros_like(x))[0, 2])
    signed = IntegratedGradients(model).attribute(x.clone().requires_grad_(), target=target, n_steps=32)
    assert float(signed.detach().sum()) == pytest.approx(rise, rel=0.05, abs=0.02)
    assert torch.allclose(integrated_gradients(model, x, target), signed.detach().abs().sum(1), atol=1e-5)


@pytest.mark.parametrize("family", ["resmlp", "rest", "restv2"])
def test_cam_of_average_pooling_is_the_classifier_s_own_map(models: dict[str, Backbone], family: str) -> None:
    """These logits are linear in the normalized tokens: so this is the class activation map of Zhou et al., 2016."""
    model, x = models[family], image(64, 96 if family != "resmlp" else 64, batch=1)
    seen = look_at(model, x, "cam", of=1)
    assert seen.layer == len(model.feature_info) - 1
    with torch.no_grad():
        tokens = model.patch_tokens(model.forward_features(x))[0]
        if family == "resmlp":  # its norm is an affine layer, which gradients pass: all but its shift counts
            tokens = tokens - model.norm.beta  # type: ignore[union-attr, operator]
        own = tokens @ model.get_classifier().weight[1] / len(tokens)  # type: ignore[operator]
    assert torch.allclose(seen.maps.flatten(), own.clamp_min(0), atol=1e-5)


def test_a_class_token_s_cam_is_of_the_block_before(models: dict[str, Backbone]) -> None:
    """After the last block patches count for nothing."""
    x = image(batch=1)
    assert look_at(models["deit"], x, "cam").layer == 2
    assert look_at(models["cait"], x, "cam").layer == 3
    assert look_at(models["deit"], x, "cam", layer=-4).layer == 0
    assert not look_at(models["deit"], x, "cam", layer=3).maps.any()


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("resmlp", {"method": "attention"}, "resmlp_nano has no attention that is read as a map here: use method cam"),
        ("deit", {"method": "attention", "layer": 4}, "layer 4 is out of range: deit_tiny.* has 4, 0 to 3"),
        ("deit", {"method": "cam", "layer": -5}, "layer -5 is out of range"),
        ("deit", {"method": "gradients", "layer": 1}, "gradients is of the whole model: leave out the layer"),
        ("deit", {"method": "attention", "of": 1}, "is the same for every class: use method cam"),
    ],
)
def test_what_does_not_go_together_is_refused(
    models: dict[str, Backbone], family: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        look_at(models[family], image(batch=1), **options)  # type: ignore[arg-type]


def test_a_model_without_classifier_has_attention_alone() -> None:
    model = build("dino", classes=0).eval()
    assert len(look_at(model, image(batch=1), "attention").maps) == 2
    with pytest.raises(UserError, match="has no classifier, and cam is of a class: use method attention"):
        look_at(model, image(batch=1), "cam")


def test_the_usual_method_and_an_unknown_one(models: dict[str, Backbone]) -> None:
    assert method_of(models["deit"], None) == "attention"
    assert method_of(models["resmlp"], None) == "cam"
    with pytest.raises(UserError, match=r"no method is called 'atention'.*did you mean 'attention'"):
        method_of(models["deit"], "atention")


def test_a_trained_model_looks_at_the_corner_that_tells_the_class() -> None:
    """The planted test, of one family; benchmarks/maps.py makes it of all."""
    torch.manual_seed(0)
    model = create_model("S60", CLASSES, dim=32, depth=2, init_scale=0.1)
    held_out = pictures(12, 64, seed=1)
    fresh = share_in_corner(model.eval(), held_out, "attention").share
    train(model, 64, steps=120, batch=32, seconds=20)
    with torch.no_grad():
        assert (model(held_out.x).argmax(1) == held_out.y).float().mean() > 0.8
    for method in METHODS:
        found = share_in_corner(model, held_out, method)
        assert found.area == pytest.approx(1 / 16)
        assert found.share > 3 * found.area, method
    assert fresh < 2 / 16
