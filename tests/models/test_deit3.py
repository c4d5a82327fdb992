"""DeiT III and Three things: what is particular to them. Parity with the official code is tested for all families."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyres.config import UserError, override
from anyres.models.deit3 import VARIANTS, Block, DeiT3, DeiT3Config, HMLPStem, ParallelBlock
from anyres.ops.resample import resample_table
from anyres.ops.residual import DropPath

KINDS: dict[str, dict[str, object]] = {
    "LS": {},
    "plain": {"layer_scale": False},
    "x2 LS": {"parallel": True},
    "x2": {"parallel": True, "layer_scale": False},
    "hMLP": {"stem": "hmlp"},
    "hMLP sync": {"stem": "hmlp", "stem_norm": "sync"},
}
SMALL = DeiT3Config(dim=24, depth=2, heads=3, img_size=64, num_classes=5)
sides = st.integers(1, 130)


def fresh(**options: object) -> DeiT3:
    torch.manual_seed(0)
    return DeiT3(override(SMALL, options, "small"))


def build(**options: object) -> DeiT3:
    """With every parameter and every statistic random: a fresh model has ones and zeros where a mistake could hide."""
    model = fresh(**options).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def image(height: int = 64, width: int = 64, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


MODELS = {kind: build(**options) for kind, options in KINDS.items()}


# Initialisation, stochastic depth, weight decay


@pytest.mark.parametrize("kind", KINDS)
def test_initialisation(kind: str) -> None:
    """Of storage full of NaN, as after ``to_empty``."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = DeiT3(override(SMALL, {"dim": 96, **KINDS[kind]}, "small"))
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(math.nan if tensor.is_floating_point() else -1)
    model.init_weights()
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convolutions) == (3 if "hMLP" in kind else 1)
    gammas = 0
    for key, tensor in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        if leaf.startswith("gamma"):
            gammas += 1
            assert (tensor == torch.tensor(1e-4)).all(), key
        elif module in convolutions:
            bound = model.get_submodule(module).weight[0].numel() ** -0.5  # PyTorch's default: uniform
            assert tensor.abs().max() <= bound, key
            assert tensor.std() > 0.4 * bound, key
        elif tensor.ndim > 1:  # linears, position table, class token
            assert tensor.std() / 0.02 == pytest.approx(1, abs=5 / (2 * tensor.numel()) ** 0.5), key
        else:
            assert (tensor == (1 if leaf == "running_var" or (leaf == "weight" and "head" not in key) else 0)).all(), (
                key
            )
    assert gammas == {"plain": 0, "x2": 0, "x2 LS": 8}.get(kind, 4)


@pytest.mark.parametrize("parallel", [False, True])
def test_stochastic_depth_is_the_same_in_every_block(parallel: bool) -> None:
    model = fresh(depth=4, drop_path=0.3, parallel=parallel)
    assert [m.drop_prob for m in model.modules() if isinstance(m, DropPath)] == [0.3] * 4


@pytest.mark.parametrize(("block", "branches"), [(Block, 2), (ParallelBlock, 4)])
def test_every_branch_draws_its_own_mask(block: type[nn.Module], branches: int) -> None:
    """Branches that add constants of their own show which of them were kept: all combinations come about."""
    torch.manual_seed(0)
    module = block(12, 3, layer_scale=False, drop_path=0.5)
    ends = [m.proj if hasattr(m, "proj") else m.fc2 for n, m in module.named_children() if n[:3] in ("att", "mlp")]
    assert len(ends) == branches
    with torch.no_grad():
        for i, end in enumerate(ends):
            end.weight.zero_()
            end.bias.fill_(2.0**i / 2)  # a kept branch is doubled
    with torch.no_grad():
        sums = module(torch.zeros(200, 1, 12))[:, 0, 0]
    assert set(sums.tolist()) == set(range(2**branches))


@torch.no_grad()
def test_parallel_branches_read_the_same_input() -> None:
    block = build(parallel=True).blocks[0]
    x = torch.randn(2, 7, 24)
    attentions = block.gamma_1 * block.attn(block.norm1(x)), block.gamma_1_1 * block.attn1(block.norm11(x))
    y = x + sum(attentions)  # the second does not see the first
    mlps = block.gamma_2 * block.mlp(block.norm2(y)), block.gamma_2_1 * block.mlp1(block.norm21(y))
    torch.testing.assert_close(block(x), y + sum(mlps))


def test_no_weight_decay() -> None:
    """The two tables; vectors are spared by the common rule."""
    for model in MODELS.values():
        assert model.no_weight_decay() == {name for name, p in model.named_parameters() if p.ndim == 3}


# Any size


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_every_size_runs_and_is_padded_with_zeros(kind: str, height: int, width: int) -> None:
    model, x = MODELS[kind], image(height, width)
    tokens = model.patch_tokens(model.forward_features(x))
    assert tokens.shape == (1, math.ceil(height / 16) * math.ceil(width / 16), 24)
    logits = model(x)
    assert logits.isfinite().all()
    torch.testing.assert_close(model(F.pad(x, (0, -width % 16, 0, -height % 16))), logits, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(33, 16), (65, 40), (3, 2)])
def test_training_reaches_every_parameter(kind: str, height: int, width: int) -> None:
    """Biases before a batch norm too, though with a gradient of rounding errors."""
    model = copy.deepcopy(MODELS[kind]).train()
    model(image(height, width, batch=2)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6))
@torch.no_grad()
def test_positions_are_those_of_the_grid(rows: int, columns: int) -> None:
    """Tokens of a black image differ by their positions alone; the class token comes first and has none."""
    model = MODELS["LS"]
    tokens, grid = model.embed(torch.zeros(1, 3, 16 * rows, 16 * columns))
    assert grid == (rows, columns)
    table = resample_table(model.pos_embed, (4, 4), (rows, columns))
    torch.testing.assert_close(tokens[:, 1:], table + model.patch_embed.proj.bias)
    torch.testing.assert_close(tokens[:, :1], model.cls_token, rtol=0, atol=0)
    if (rows, columns) == (4, 4):
        torch.testing.assert_close(table, model.pos_embed, rtol=0, atol=0)


@torch.no_grad()
def test_a_rectangle_is_not_another_rectangle() -> None:
    model = MODELS["LS"]
    flat = torch.zeros(1, 3, 64, 144)
    logits = [model(flat), model(flat.reshape(1, 3, 96, 96)), model(flat.mT)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (logits[a] - logits[b]).abs().max() > 1e-5


def test_img_size_sizes_the_table_of_every_variant() -> None:
    """Officially the medium one stays at 224."""
    for name, config in VARIANTS.items():
        with torch.device("meta"):
            rows = [
                DeiT3(override(config, {"depth": 1, **o}, name)).pos_embed.shape[1] for o in ({}, {"img_size": 448})
            ]
        grid = {14: 16, 16: 14}[config.patch_size]
        assert rows == [grid**2, 4 * grid**2], name


# hMLP stem


@torch.no_grad()
def test_hmlp_keeps_patches_apart() -> None:
    """So a patch can be masked before the stem or after it."""
    model, x = MODELS["hMLP"], image(48, 80)
    changed = x.clone()
    changed[..., 16:32, 48:64] += 1
    moved = (model.patch_embed(x)[0] != model.patch_embed(changed)[0]).any(-1)
    assert moved.nonzero().tolist() == [[0, 1 * 5 + 3]]


def test_hmlp_has_the_papers_size_and_either_norm() -> None:
    assert sum(p.numel() for p in HMLPStem(3, 384, nn.BatchNorm2d).parameters()) == 190_656
    for kind, norm in (("hMLP", nn.BatchNorm2d), ("hMLP sync", nn.SyncBatchNorm)):
        assert [i for i, m in enumerate(MODELS[kind].patch_embed.proj) if isinstance(m, norm)] == [1, 4, 7]
    with torch.no_grad():  # without other processes they are one thing, on a CPU and in training too
        plain, sync = copy.deepcopy(MODELS["hMLP"]).train(), copy.deepcopy(MODELS["hMLP sync"]).train()
        sync.load_state_dict(plain.state_dict())
        torch.testing.assert_close(sync(image(batch=2)), plain(image(batch=2)))


def test_hmlp_trains_on_two_tokens_but_not_on_one() -> None:
    model = copy.deepcopy(MODELS["hMLP"]).train()
    model(image(17, 16))
    model(image(16, 16, batch=2))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(image(16, 16))


# Files


@torch.no_grad()
def test_a_table_of_another_square_is_resampled() -> None:
    wide = fresh(img_size=(32, 96)).eval()
    state = {**MODELS["LS"].state_dict()}
    adapted = wide.convert_state_dict(state)
    torch.testing.assert_close(adapted["pos_embed"], resample_table(state["pos_embed"], (4, 4), (2, 6)), rtol=0, atol=0)
    assert state["pos_embed"].shape[1] == 16  # the caller's is left alone
    wide.load_state_dict(adapted)
    # One resampling at loading is the one of the forward pass.
    torch.testing.assert_close(wide(image(32, 96)), MODELS["LS"](image(32, 96)))


def test_a_table_of_this_models_rows_is_taken_as_it_is() -> None:
    table = torch.randn(1, 10, 24)  # 2 x 5, which is 3 x 3 and one too
    assert fresh(img_size=(32, 80)).convert_state_dict({"pos_embed": table})["pos_embed"] is table


@pytest.mark.parametrize(
    ("rows", "says"),
    [(197, "looks like DeiT,"), (198, "looks like distilled DeiT,"), (577, "looks like DeiT,"), (20, "no square grid")],
)
def test_other_tables_are_refused_in_one_line(rows: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        MODELS["LS"].convert_state_dict({"pos_embed": torch.zeros(1, rows, 24)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"), [("deit3_small_patch16_224", {}), ("vit_small_patch16_18x2_224", {"no_embed_class": True})]
)
@torch.no_grad()
def test_timms_names(name: str, options: dict[str, object]) -> None:
    """timm's model of the same architecture gives the same logits, at its size."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        name, embed_dim=24, depth=2, num_heads=3, img_size=64, num_classes=5, init_values=1e-4, **options
    ).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.rand_like(parameter))
    ours = fresh(parallel="18x2" in name).eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()))
    torch.testing.assert_close(ours(image()), theirs(image()), rtol=1e-4, atol=1e-5)


# Variants and options


def test_crop_is_the_repositorys() -> None:
    three_things = {name for name in VARIANTS if name.startswith(("deit_small_patch16_36", "deit_small_patch16_18"))}
    three_things |= {name for name in VARIANTS if name.startswith(("deit_base_patch16_36", "deit_base_patch16_18"))}
    assert len(three_things) == 8
    assert len(VARIANTS) == 20
    for name, config in VARIANTS.items():
        with torch.device("meta"):
            cfg = DeiT3(replace(config, depth=1)).pretrained_cfg
        assert cfg["crop_pct"] == (0.875 if name in three_things else 1.0), name
        assert cfg["input_size"] == (3, 224, 224)


@pytest.mark.parametrize(("x2", "twin"), [("Giant_48x2", "Giant_48"), ("giant_40x2", "giant_40")])
def test_the_giants_that_cannot_be_built_officially(x2: str, twin: str) -> None:
    """A parallel block is two blocks, so its part of the parameters is twice that of the serial giant's."""

    def in_blocks(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in DeiT3(VARIANTS[f"deit_{name}_patch14_LS"]).blocks.parameters())

    assert in_blocks(x2) == 2 * in_blocks(twin)


@pytest.mark.parametrize("kind", KINDS)
def test_pretrained_cfg_names_modules(kind: str) -> None:
    model = fresh(in_chans=2, **KINDS[kind])
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 2
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 25},
        {"depth": 0},
        {"img_size": (64, 0)},
        {"num_classes": -1},
        {"drop_path": 1.0},
        {"crop_pct": 0.0},
        {"stem": "hmlp", "patch_size": 14},
        {"stem": "hmlp", "dim": 27},
        {"stem_norm": "sync"},
    ],
)
def test_impossible_options_are_one_line(options: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        override(SMALL, options, "small")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("option", "value"), [("stem", "mlp"), ("stem_norm", "layer")])
def test_unknown_words_are_one_line(option: str, value: str) -> None:
    config = copy.copy(SMALL)
    object.__setattr__(config, option, value)  # past the type checker, which is there under test only
    with pytest.raises(UserError, match=f"'{value}'") as caught:
        config.__post_init__()
    assert "\n" not in str(caught.value)
