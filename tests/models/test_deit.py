"""DeiT: two tokens and two heads where it is distilled, and a position table that goes with the image."""

import math
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.contract import Backbone
from anyres.models.deit import VARIANTS, DeiT, DeiTConfig, preprocessing
from anyres.models.weights import load_weights
from anyres.ops.resample import resample_table


def build(seed: int = 0, **options: object) -> DeiT:
    """Small, with every parameter random: a fresh model has zeros where a mistake could hide."""
    torch.manual_seed(seed)
    small = {"dim": 16, "depth": 2, "heads": 2, "patch_size": 4, "img_size": 16, "num_classes": 5}
    model = DeiT(DeiTConfig(**(small | options))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


PLAIN, DISTILLED = build(), build(distilled=True)


def test_variants_are_the_official_eight() -> None:
    assert len(VARIANTS) == 8
    for name, config in VARIANTS.items():
        assert config.distilled == ("distilled" in name)
        assert config.image == (int(name[-3:]),) * 2
        assert config.dim == 64 * config.heads
        cfg = preprocessing(config)
        assert math.floor(config.image[0] / cfg["crop_pct"]) == {224: 256, 384: 438}[config.image[0]]
        assert cfg["classifier"] == (("head", "head_dist") if config.distilled else "head")


@torch.no_grad()
def test_initialisation() -> None:
    with torch.device("meta"):
        model = DeiT(DeiTConfig(dim=48, depth=2, distilled=True, num_classes=300))
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(math.nan)
    model.init_weights()
    for key, tensor in model.state_dict().items():
        if "norm" in key:
            assert (tensor == key.endswith("weight")).all(), key
        elif key.startswith("patch_embed"):
            assert 0 < tensor.abs().max() <= (3 * 16 * 16) ** -0.5, key
        elif key.endswith("bias"):
            assert (tensor == 0).all(), key
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=5 / (2 * tensor.numel()) ** 0.5), key


def test_stochastic_depth_grows_linearly() -> None:
    assert [block.drop_path.drop_prob for block in build(depth=4, drop_path=0.3).blocks] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3]
    )


def test_no_weight_decay_leaves_the_distillation_token_out() -> None:
    """As the official list does; all three are parameters with more than one axis."""
    names = dict(DISTILLED.named_parameters()).keys()
    assert DISTILLED.no_weight_decay() == PLAIN.no_weight_decay() == {"pos_embed", "cls_token"}
    assert {"pos_embed", "cls_token", "dist_token"} < names


@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_distilled_answers_with_the_mean_of_its_heads(training: bool) -> None:
    model, x = build(distilled=True).train(training), image(16, 16)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features) == (2, 32)
    torch.testing.assert_close(pooled[:, :16], features[:, 0])
    torch.testing.assert_close(pooled[:, 16:], features[:, 1])
    logits, dist_logits = model.heads(pooled)
    torch.testing.assert_close(logits, model.head(features[:, 0]))
    torch.testing.assert_close(dist_logits, model.head_dist(features[:, 1]))
    assert (logits - dist_logits).abs().max() > 0.1
    torch.testing.assert_close(model(x), (logits + dist_logits) / 2)
    torch.testing.assert_close(model.get_classifier()(pooled), model(x))
    assert model.patch_tokens(features).shape == (2, 16, 16)
    with pytest.raises(UserError, match="distilled=True"):
        PLAIN.heads(pooled)


def test_the_classifier_is_a_view_of_both_heads() -> None:
    """It holds the model's own parameters and adds no name to its state dict."""
    model = build(distilled=True)
    keys = set(model.state_dict())
    classifier = model.get_classifier()
    assert {id(p) for p in classifier.parameters()} == {
        id(p) for head in (model.head, model.head_dist) for p in head.parameters()
    }
    assert set(model.state_dict()) == keys
    assert not any(isinstance(module, type(classifier)) for module in model.modules())


def test_reset_classifier_renews_both_heads() -> None:
    model = build(distilled=True).double()
    model.reset_classifier(7)
    for head in (model.head, model.head_dist):
        assert isinstance(head, nn.Linear)
        assert head.weight.dtype == torch.float64
        assert (head.bias == 0).all()
    assert model(image(16, 16).double()).shape == (2, 7)
    model.reset_classifier(0)
    pooled = model.forward_head(model.forward_features(image(16, 16).double()), pre_logits=True)
    assert torch.equal(model(image(16, 16).double()), pooled)
    assert torch.equal(model.get_classifier()(pooled), pooled)
    with pytest.raises(UserError, match="one pooling"):
        model.reset_classifier(7, global_pool="avg")


@pytest.mark.parametrize("model", [PLAIN, DISTILLED], ids=["plain", "distilled"])
@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
@torch.no_grad()
def test_every_size_runs_with_positions_of_its_own_grid(model: Backbone, height: int, width: int) -> None:
    """What is added to the patches is the resampled table, and to the special tokens the stored rows."""
    x, count = image(height, width), model.config.specials
    tokens, grid = model.embed(x)
    assert grid == (-(-height // 4), -(-width // 4))
    patches, _ = model.patch_embed(x)
    added = tokens[:, count:] - patches
    expected = resample_table(model.pos_embed[:, count:], (4, 4), grid).expand_as(added)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)
    special = torch.cat((model.cls_token, model.dist_token) if count == 2 else (model.cls_token,), dim=1)
    torch.testing.assert_close(tokens[:, :count], (special + model.pos_embed[:, :count]).expand(2, -1, -1))
    assert model(x).isfinite().all()


@torch.no_grad()
def test_a_rectangle_is_its_own_grid() -> None:
    """On the stored rectangle the table is used as it is; on its transpose, which has as many tokens, it is not."""
    model = build(img_size=(16, 24))
    assert model.pos_embed.shape == (1, 1 + 24, 16)
    for (height, width), stored in (((16, 24), True), ((24, 16), False)):
        tokens, _ = model.embed(image(height, width))
        plain = model.patch_embed(image(height, width))[0] + model.pos_embed[:, 1:]
        assert torch.equal(tokens[:, 1:], plain) == stored


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("size", [24, (12, 20)])
@torch.no_grad()
def test_a_file_of_another_grid_is_carried(distilled: bool, size: int | tuple[int, int], tmp_path: Path) -> None:
    """A model built at another size and loaded equals the model resampled on the fly; special rows stay."""
    source, model = build(1, distilled=distilled), build(2, distilled=distilled, img_size=size)
    torch.save({"model": source.state_dict()}, tmp_path / "weights.pth")
    load_weights(model, tmp_path / "weights.pth")
    count = 1 + distilled
    assert torch.equal(model.pos_embed[:, :count], source.pos_embed[:, :count])
    x = image(*model.config.image)
    torch.testing.assert_close(model(x), source(x))


def test_a_file_of_the_same_grid_is_taken_as_it_is() -> None:
    state = PLAIN.state_dict()
    assert PLAIN.convert_state_dict(state)["pos_embed"] is state["pos_embed"]
    rectangle = build(img_size=(16, 24))
    state = rectangle.state_dict()
    assert rectangle.convert_state_dict(state)["pos_embed"] is state["pos_embed"]


@pytest.mark.parametrize(
    ("model", "state", "message"),
    [
        (PLAIN, DISTILLED.state_dict(), "it is for a distilled DeiT"),
        (DISTILLED, PLAIN.state_dict(), "for a DeiT that is not distilled"),
        (PLAIN, PLAIN.state_dict() | {"pos_embed": torch.ones(1, 16, 16)}, "has 16 rows, no square grid"),
        (PLAIN, PLAIN.state_dict() | {"pos_embed": torch.ones(1, 1, 16)}, "has 1 rows, no square grid"),
        (DISTILLED, DISTILLED.state_dict() | {"pos_embed": torch.ones(1, 17, 16)}, "and 2 for special tokens"),
    ],
)
def test_refusals_are_one_line(model: DeiT, state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model.convert_state_dict(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@torch.no_grad()
def test_timms_files_fit(name: str) -> None:
    """timm gives the same names; its distilled model answers with the same mean."""
    theirs = timm.create_model(name, embed_dim=48, depth=2, num_classes=5).eval()
    model = DeiT(DeiTConfig(dim=48, depth=2, num_classes=5, distilled="distilled" in name)).eval()
    model.load_state_dict(model.convert_state_dict(theirs.state_dict()))
    torch.testing.assert_close(model(image(224, 224)), theirs(image(224, 224)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"dim": 50, "heads": 4}, {"drop_path": 1.0}, {"patch_size": 0}, {"img_size": (16, 0)}, {"num_classes": -1}],
)
def test_impossible_options_are_one_line(options: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        DeiTConfig(**options)
    assert "\n" not in str(caught.value)
