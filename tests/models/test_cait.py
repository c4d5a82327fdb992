"""CaiT's own: two phases, talking heads, a position table carried to any grid, and files in its names."""

import math
from pathlib import Path

import jaxtyping
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._manipulate import group_parameters
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

from anyres.config import UserError
from anyres.models.cait import VARIANTS, CaiT, CaiTConfig
from anyres.models.weights import load_weights
from anyres.ops.mixed_heads import mix
from anyres.ops.resample import resample_table
from anyres.ops.residual import DropPath

SMALL = {"dim": 48, "depth": 3, "heads": 3, "patch_size": 8, "img_size": 32, "num_classes": 7}


def build(**options: object) -> CaiT:
    """Small, with every parameter random: a fresh model has γ near zero, where a mistake could hide."""
    torch.manual_seed(0)
    model = CaiT(CaiTConfig(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def image(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


MODEL = build()
sides = st.integers(1, 100)


@pytest.mark.parametrize("scale", [1e-5, 1e-6])
def test_initialisation(scale: float) -> None:
    """From storage full of NaN, as after ``to_empty``."""
    with torch.device("meta"):
        model = CaiT(CaiTConfig(**{**SMALL, "heads": 12, "init_scale": scale}))
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, math.nan)
    model.init_weights()
    for key, tensor in model.state_dict().items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf.startswith("gamma"):
            assert (tensor == torch.tensor(scale)).all(), key
        elif "norm" in key:
            assert (tensor == (leaf == "weight")).all(), key
        elif key.startswith("patch_embed"):
            assert 0 < tensor.abs().max() <= (3 * 8 * 8) ** -0.5, key
        elif leaf == "bias":
            assert (tensor == 0).all(), key
        else:  # linears, those over the 12 heads too, class token and table; within 5 standard errors
            assert abs(tensor.std().item() / 0.02 - 1) < 5 / (2 * tensor.numel()) ** 0.5, key


def test_variants_scales_and_sides() -> None:
    deep = {"cait_S36", "cait_M36", "cait_M48"}
    assert {name for name, config in VARIANTS.items() if config.init_scale == 1e-6} == deep
    assert all(config.init_scale == 1e-5 for name, config in VARIANTS.items() if name not in deep)
    sides = {name: 448 if name == "cait_M48" else 224 if name.endswith("224") else 384 for name in VARIANTS}
    assert {name: config.img_size for name, config in VARIANTS.items()} == sides
    assert all(config.dim == 48 * config.heads for config in VARIANTS.values())


def test_drop_path_is_constant_in_the_trunk_and_absent_in_class_attention() -> None:
    model = build(drop_path=0.3)
    rates = {name: m.drop_prob for name, m in model.named_modules() if isinstance(m, DropPath)}
    assert rates == {f"blocks.{i}.drop_path": 0.3 for i in range(3)}
    x = image(32, 32, batch=4)
    model.train()
    assert not torch.equal(model(x), model(x))
    patches = torch.randn(4, 16, 48)
    torch.testing.assert_close(model.listen(patches), model.listen(patches), rtol=0, atol=0)


def test_no_weight_decay_and_layers_along_the_flow() -> None:
    names = {name for name, _ in MODEL.named_parameters()}
    assert MODEL.no_weight_decay() == {"pos_embed", "cls_token"} <= names
    layers = group_parameters(MODEL, MODEL.group_matcher(), reverse=True)
    assert layers.keys() == names
    order = ["pos_embed", "blocks.0.gamma_1", "blocks.1.gamma_1", "blocks.2.gamma_1"]
    order += ["blocks_token_only.0.gamma_1", "blocks_token_only.1.gamma_1", "head.weight"]
    assert [layers[name] for name in order] == list(range(7))
    assert (layers["cls_token"], layers["norm.weight"]) == (4, 5)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 5), rows=st.integers(1, 9), columns=st.integers(1, 9))
@torch.no_grad()
def test_mixing_is_a_linear_layer_over_the_head_axis(batch: int, heads: int, rows: int, columns: int) -> None:
    layer, scores = nn.Linear(heads, heads).double(), torch.randn(batch, heads, rows, columns).double()
    torch.testing.assert_close(
        mix(scores, layer.weight, layer.bias), layer(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    )


class SoftmaxDtypes(TorchDispatchMode):
    """Collects the dtypes that softmaxes come in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._softmax.default:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("autocast", [True, False])
def test_softmax_is_float32_in_bfloat16(autocast: bool) -> None:
    model, x = build(), image(32, 40)
    expected = model(x)
    if not autocast:
        model, x = model.bfloat16(), x.bfloat16()
    with SoftmaxDtypes() as softmaxes, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(x)
    assert softmaxes.seen == [torch.float32] * 5  # three blocks of the trunk, two of class attention
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()


@settings(max_examples=20, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_every_size_runs_and_is_padded_with_zeros(height: int, width: int) -> None:
    x = image(height, width)
    features = MODEL.forward_features(x)
    rows, columns = math.ceil(height / 8), math.ceil(width / 8)
    assert features.shape == (1, 1 + rows * columns, 48)
    logits = MODEL(x)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, MODEL.get_classifier()(MODEL.forward_head(features, pre_logits=True)))
    padded = MODEL(F.pad(x, (0, -width % 8, 0, -height % 8)))
    torch.testing.assert_close(logits, padded, rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_positions_are_the_resampled_table_and_the_class_token_has_none(height: int, width: int) -> None:
    x = image(height, width)
    tokens, grid = MODEL.embed(x)
    expected = MODEL.pos_embed if grid == (4, 4) else resample_table(MODEL.pos_embed, (4, 4), grid)
    torch.testing.assert_close(tokens - MODEL.patch_embed(x)[0], expected.expand_as(tokens))


@settings(max_examples=10, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_patches_are_final_when_the_class_enters(height: int, width: int) -> None:
    """The last of the trunk's features is what the class token listens to, before and after."""
    final, maps = MODEL.forward_intermediates(image(height, width), norm=True)
    assert [m.shape for m in maps] == [(1, 48, math.ceil(height / 8), math.ceil(width / 8))] * 3
    torch.testing.assert_close(maps[-1].flatten(2).mT, MODEL.patch_tokens(final))


@torch.no_grad()
def test_a_constant_image_has_one_patch_at_every_size() -> None:
    """Without positions and without the bias after the softmax, whose sum over the keys grows with their number."""
    model = build()
    model.pos_embed.zero_()

    def patch(height: int, width: int) -> Tensor:
        tokens = model.patch_tokens(model.forward_features(torch.full((1, 3, height, width), 0.5)))
        torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens), rtol=1e-4, atol=1e-4)
        return tokens[:, 0]

    assert (patch(32, 32) - patch(32, 8)).abs().max() > 1e-3
    for block in model.blocks:
        block.attn.proj_w.bias.zero_()
    for height, width in ((8, 8), (64, 24), (96, 128)):
        torch.testing.assert_close(patch(height, width), patch(32, 32), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_rectangle_is_not_another_rectangle() -> None:
    patches = image(8, 36 * 8).unfold(3, 8, 8)  # (1, 3, 8, 36, 8)

    def lay(rows: int, columns: int) -> Tensor:
        grid = patches.reshape(3, 8, rows, columns, 8).permute(0, 2, 1, 3, 4)
        return MODEL(grid.reshape(1, 3, rows * 8, columns * 8))

    logits = [lay(4, 9), lay(6, 6), lay(9, 4)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (logits[a] - logits[b]).abs().max() > 1e-4


def test_checkpointing_changes_no_gradient() -> None:
    plain, saving = build().train(), build().train()
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(image(40, 21, batch=2)).square().sum().backward()
    for (key, ours), theirs in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert ours.grad is not None
        assert ours.grad.isfinite().all(), key
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, k=key: f"{k}: {m}")


@torch.no_grad()
def test_export_answers_other_sizes_as_eager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a traced size is no int
    free = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    exported = torch.export.export(MODEL, (image(40, 72),), dynamic_shapes=(free,)).module()
    for x in (image(32, 32), image(50, 77)):
        torch.testing.assert_close(exported(x), MODEL(x))


@pytest.mark.parametrize("ours_from_timm", [True, False])
@torch.no_grad()
def test_timms_weights_are_ours(ours_from_timm: bool) -> None:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
    theirs, ours = timm.create_model("cait_xxs24_224", **options).eval().double(), build().double()
    if ours_from_timm:
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()))
    else:
        theirs.load_state_dict(ours.state_dict())
    x = image(32, 32, batch=2).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_an_official_file_loads_on_another_grid(tmp_path: Path) -> None:
    """{"model": {"module.…"}}; carried when loaded, the table is what it would be when carried at every image."""
    path, bigger = tmp_path / "XXS24_224.pth", build(img_size=(48, 40))
    torch.save({"model": {f"module.{key}": tensor for key, tensor in MODEL.state_dict().items()}}, path)
    load_weights(bigger, path)
    assert bigger.pos_embed.shape == (1, 30, 48)
    torch.testing.assert_close(bigger(image(48, 40)), MODEL(image(48, 40)))
    same = build()
    same.pos_embed.zero_()
    load_weights(same, path)
    assert torch.equal(same.pos_embed, MODEL.pos_embed)


def test_a_table_of_no_square_grid_is_refused_in_one_line() -> None:
    state = MODEL.state_dict()
    for n in (17, 12):  # a class token's row, as DeiT's tables have; a rectangle
        with pytest.raises(UserError, match=f"pos_embed holds {n} tokens, no square grid") as caught:
            MODEL.convert_state_dict({**state, "pos_embed": torch.zeros(1, n, 48)})
        assert "\n" not in str(caught.value)
    carried = build(img_size=64).convert_state_dict(state)["pos_embed"]
    assert torch.equal(carried, resample_table(state["pos_embed"], (4, 4), (8, 8)))
    assert state["pos_embed"].shape == (1, 16, 48)  # what was given is left alone


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 50},
        {"heads": 0},
        {"depth": 0},
        {"img_size": (32, 0)},
        {"num_classes": -1},
        {"drop_path": 1.0},
        {"drop_path": -0.1},
    ],
)
def test_impossible_options_are_one_line(options: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        CaiTConfig(**{**SMALL, **options})
    assert "\n" not in str(caught.value)


def test_reset_classifier() -> None:
    model = build().double()
    model.reset_classifier(3, global_pool="token")
    assert model(image(32, 32).double()).shape == (1, 3)
    model.reset_classifier(0)
    assert model(image(32, 32).double()).shape == (1, 48)
    with pytest.raises(UserError, match="one pooling"):
        model.reset_classifier(3, global_pool="avg")
