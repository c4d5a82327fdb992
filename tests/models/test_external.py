"""Models of timm and torchvision as backbones: their keys, the contract, sizes, channels, weights, and the verbs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from timm.models._manipulate import group_parameters
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

import anyres
from anyres.config import UserError
from anyres.data.views import eval_view
from anyres.flow import Size
from anyres.models import create_model, list_models, variant
from anyres.models.contract import Backbone
from anyres.models.external_timm import set_size
from anyres.models.trainable import freeze
from anyres.models.weights import load_weights
from anyres.recipe import dump_recipe, load_recipe, read_recipe
from anyres.runs.inputs import describe_preprocessing, interpolation_of
from tests.command import anyres as command
from tests.command import refused
from tests.models.zoo import SMALL, build
from tests.pictures import make_folder

SMALL_FOREIGN = ("timm:test_vit", "timm:test_resnet", "timm:test_convnext", "torchvision:mobilenet_v3_small")


def image(height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(height))


def fresh(name: str, classes: int = 4, **options: object) -> Backbone:
    torch.manual_seed(0)
    model = create_model(name, classes, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def test_members_are_timms_own() -> None:
    model, theirs = fresh("timm/test_vit"), timm.create_model("test_vit", num_classes=4)
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    theirs.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(image(160, 160)), theirs.eval()(image(160, 160)))
    twin = copy.deepcopy(model)
    assert twin.timm is not model.timm
    assert twin.timm.pos_embed is twin.pos_embed is not model.pos_embed
    twin.head = torch.nn.Identity()
    assert twin(image()).shape == (2, model.num_features)
    assert model(image()).shape == (2, 4)
    assert model.train().timm.training
    assert not model.eval().timm.training
    before = model.head.weight.clone()
    model.init_weights()
    assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize("name", [*SMALL_FOREIGN, "timm:deit_tiny_distilled_patch16_224"])
def test_contract(name: str) -> None:
    model = fresh(name)
    assert model.called == name
    for size in ((64, 64), (64, 96)):
        x = image(*size)
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
        assert model.patch_tokens(features).ndim == 3
    assert model.pretrained_cfg == variant(name).preprocessing | {
        "architecture": name,
        "num_classes": 4,
    }
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == {key for key, _ in model.named_parameters()}
    assert len(set(layers.values())) > 3
    model.check_sizes([(64, 64), (96, 64)], training=True)
    if model.two_heads:
        torch.testing.assert_close(sum(model.heads(pooled)) / 2, model(x))
    model.train()
    loss = model(x).square().mean() + model.forward_head(model.forward_features(x), pre_logits=True).mean()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval().reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape[0] == 2
    assert create_model(name, 0).num_classes == 0


def test_names() -> None:
    assert variant("timm/convnext_atto").name == "timm:convnext_atto"
    assert variant("timm:convnext_atto.d2_in1k").foreign
    assert "timm:convnext_atto" in list_models("timm:convnext_a*")
    assert list_models("torchvision/resnet18*") == ["torchvision:resnet18"]
    assert not [name for name in list_models() if ":" in name]
    with pytest.raises(UserError, match="timm has no model 'convnext_atoo'; did you mean 'convnext_atto'"):
        create_model("timm:convnext_atoo")
    with pytest.raises(UserError, match="torchvision:resnet19 is no classifier of torchvision's; did you mean"):
        create_model("torchvision:resnet19")
    with pytest.raises(UserError, match="timm:test_resnet has no option 'img_size'"):
        create_model("timm:test_resnet", img_size=96)
    with pytest.raises(UserError, match="squeezenet1_0 has no linear classifier"):
        create_model("torchvision:squeezenet1_0")


def test_one_size_is_one_line() -> None:
    model = fresh("timm:gmlp_ti16_224")
    with pytest.raises(UserError, match=r"gmlp_ti16_224 takes images of one size only, 224 px, not 96x64 px") as caught:
        model.check_sizes([(224, 224), (96, 64)])
    assert "\n" not in str(caught.value)
    fresh("timm:gmlp_ti16_224", img_size=64).check_sizes([(64, 64)], training=True)


def test_a_model_that_can_be_set_to_a_size_answers_at_every_one() -> None:
    model = fresh("timm:coatnet_nano_rw_224", img_size=64)
    model.check_sizes([(64, 64)], training=True)
    with pytest.raises(UserError, match="learns at one size only, 64 px, not at 96 px"):
        model.check_sizes([(64, 64), (96, 96)], training=True)
    model.check_sizes([(96, 96), (64, 96)])
    x = image(96, 96)
    theirs = copy.deepcopy(model.timm)
    set_size(theirs, (96, 96))
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x))
        first = model(x)
        for parameter in model.parameters():
            parameter.mul_(0.5)
        assert not torch.allclose(model(x), first)  # its copy is of the new values


@pytest.mark.parametrize("name", SMALL_FOREIGN)
@torch.no_grad()
def test_deployed_as_it_is(name: str) -> None:
    model = fresh(name)
    for size in (None, 64, (96, 64)):
        deployed = anyres.fuse(model, size)
        assert deployed is not model
        assert not any(p.requires_grad for p in deployed.parameters())
        x = image(96, 64) if size == (96, 64) else image()
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-3, atol=1e-4)
    if name == "timm:test_vit":
        assert anyres.fuse(model, 64).pos_embed.shape[1] == 1 + 16  # resampled once, as no exporter can


def test_freezing() -> None:
    vit = fresh("timm:test_vit")
    freeze(vit, "attention")
    trained = {name for name, p in vit.named_parameters() if p.requires_grad}
    assert {"pos_embed", "head.weight", "blocks.0.attn.qkv.weight"} <= trained
    assert not {"cls_token", "norm.weight", "blocks.0.mlp.fc1.weight", "patch_embed.proj.weight"} & trained
    resnet = fresh("timm:test_resnet")
    freeze(resnet, "head")
    assert {name for name, p in resnet.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    with pytest.raises(UserError, match="timm:test_resnet has no attention; choose all or head"):
        freeze(resnet, "attention")


# --- weights and channels ------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    model = fresh("timm:test_vit")
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    again = fresh("timm:test_vit", drop_path=0.1)
    load_weights(again, tmp_path / "vit.safetensors")
    torch.testing.assert_close(again(image()), model(image()))
    other = fresh("timm:test_vit", 9, img_size=96)  # another grid, other classes
    assert load_weights(other, tmp_path / "vit.safetensors", replace_head="if_needed").new_classifier
    assert other(image(96, 96)).shape == (2, 9)
    with pytest.raises(UserError, match="it has 4 classes, the model 9") as caught:
        load_weights(fresh("timm:test_vit", 9), tmp_path / "vit.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not fit this model"):
        load_weights(fresh("timm:test_resnet"), tmp_path / "vit.safetensors")


def test_published_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = timm.create_model("test_resnet")
    theirs = timm.create_model

    def fetched(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        made = theirs(name, **{key: value for key, value in options.items() if key != "pretrained_cfg_overlay"})
        if pretrained:
            state = published.state_dict()
            weight = adapt_input_conv(int(options["in_chans"]), state["conv1.0.weight"])  # type: ignore[call-overload]
            made.load_state_dict(state | {"conv1.0.weight": weight})
        return made

    monkeypatch.setattr("timm.create_model", fetched)
    model = create_model("timm:test_resnet", pretrained=True)
    torch.testing.assert_close(dict(model.state_dict()), dict(published.state_dict()))
    few = create_model("timm:test_resnet", 3, pretrained=True, replace_head=True, in_chans=1)
    assert few.conv1[0].weight.shape[1] == 1
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    monkeypatch.undo()
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    for name in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(UserError) as caught:
            create_model(name, pretrained=True)
        assert "\n" not in str(caught.value)


def test_torchvisions_weights_are_read_without_pickle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = torchvision.models.shufflenet_v2_x0_5().eval()
    torch.save(published.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr("anyres.models.external_torchvision.fetch", lambda url: tmp_path / "w.pth")
    model = create_model("torchvision:shufflenet_v2_x0_5", pretrained=True).eval()
    torch.testing.assert_close(model(image()), published(image()))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("name", [*SMALL, *SMALL_FOREIGN])
def test_channels(name: str, channels: int, tmp_path: Path) -> None:
    """Of an image: a file of RGB weights is adapted as timm does."""
    if name in SMALL:
        colored, model = build(name), build(name, seed=1, in_chans=channels)
    else:
        colored, model = fresh(name), create_model(name, 4, in_chans=channels)
    assert model.eval()(image(channels=channels)).shape == (2, model.num_classes)
    save_file({key: tensor.contiguous() for key, tensor in colored.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    first = f"{model.pretrained_cfg['first_conv']}.weight"
    for key, tensor in model.state_dict().items():
        theirs = colored.state_dict()[key]
        expected = adapt_input_conv(channels, theirs) if key == first else theirs
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    assert model(image(channels=channels)).isfinite().all()


# --- recipes and verbs ---------------------------------------------------------------------------------------------


def test_preprocessing_is_timms(tmp_path: Path) -> None:
    recipe = load_recipe("timm:vit_tiny_patch16_224")
    assert recipe.data.mean == recipe.data.std == (0.5, 0.5, 0.5)
    given = load_recipe("timm:vit_tiny_patch16_224", ["data.mean=[0.1, 0.2, 0.3]"])
    assert (given.data.mean, given.data.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(given))
    assert read_recipe(tmp_path / "recipe.yaml") == given
    assert interpolation_of(load_recipe("timm:tf_efficientnetv2_b0")) == "bicubic"
    bilinear = load_recipe("timm:resnet18.tv_in1k")
    assert interpolation_of(bilinear) == "bilinear"
    assert "bilinear, antialiased" in describe_preprocessing(bilinear)
    picture = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    expected = resize(picture, [20, 30], InterpolationMode.BILINEAR, antialias=True)
    assert torch.equal(eval_view(picture, Size(20, 30), 1.0, interpolation="bilinear"), expected)
    with pytest.raises(UserError, match="has no option 'drop_pth'; did you mean 'drop_path'"):
        load_recipe("timm:test_vit", ["model.drop_pth=0.1"])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("external") / "shapes", per_class=8)


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:mobilenet_v3_small"])
def test_the_whole_river(name: str, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    values = ("views.sizes=[64, 48, 32]", "data.batch_size=8", "train.epochs=2", "evaluate.sizes=[32, 48x40]")
    more = ("objective.target=gap", "data.workers=0", "train.checkpoint_every=1", "optim.layer_decay=0.75")
    words = ("train", name, "--data", shapes, "--out", out, *values, *more)
    answer = command(*words)
    assert answer.code == 0, answer.err
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    assert command(*words).code == 0
    assert (out / "model.safetensors").read_bytes() == weights
    measured = command("curve", out, "--sizes", "32,64,40x56")
    assert measured.code == 0, measured.err
    picture = next(shapes.rglob("*.jpg"))
    for backend in ((), ("--backend", "openvino")):
        told = command("predict", out, picture, "--size", "48", *backend)
        assert told.code == 0, told.err
        assert picture.parent.name in told.out


def test_a_size_that_cannot_be_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    words = ("train", "timm:gmlp_ti16_224", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    line = refused(*words, "views.sizes=[224, 160]")
    assert "timm:gmlp_ti16_224 takes images of one size only, 224 px, not 160 px" in line
    assert not (tmp_path / "run").exists()
    answer = command("eval", "timm:gmlp_ti16_224", "--weights", "none", "--data", tmp_path / "nowhere", "--sizes", "96")
    assert answer.code == 2
    assert "takes images of one size only" in answer.err
