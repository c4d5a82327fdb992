"""DINO: its own rule for positions, against PyTorch's interpolation; the head-less backbone; the projection head."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyres.config import UserError
from anyres.models.dino import DINO, VARIANTS, DINOConfig, ProjectionHead, preprocessing, resample_positions
from anyres.models.weights import load_weights
from anyres.ops.patch import Grid
from tests.models.test_fingerprints import uniform, value


def build(seed: int = 0, **options: object) -> DINO:
    """Small, with every parameter random: a fresh model has zeros where a mistake could hide."""
    torch.manual_seed(seed)
    small = {"dim": 16, "depth": 2, "heads": 2, "patch_size": 4, "img_size": 16}
    model = DINO(DINOConfig(**(small | options))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def image(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def table(grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """As large as the released ones."""
    n = grid[0] * grid[1]
    return 0.2 * torch.randn(1, n, 6, dtype=dtype, generator=torch.Generator().manual_seed(n))


def interpolated(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """The rule as the official repository states it."""
    maps = positions.reshape(1, *old, -1).permute(0, 3, 1, 2)
    factors = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
    maps = F.interpolate(maps, scale_factor=factors, mode="bicubic")
    assert maps.shape[2:] == new
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


MODEL = build()
sides = st.integers(1, 40)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("old", [(14, 14), (28, 28), (3, 3), (1, 1), (4, 7)])
def test_positions_are_pytorchs_interpolation(old: Grid, dtype: torch.dtype, atol: float) -> None:
    lengths = (1, 2, 3, 6, 7, 12, 13, 14, 15, 18, 28, 30, 60)
    for new in [*pairwise(lengths), *pairwise(reversed(lengths)), *((n, n) for n in lengths), (14, 28), (28, 14)]:
        if new != old:
            ours = resample_positions(table(old, dtype), old, new)
            torch.testing.assert_close(ours, interpolated(table(old, dtype), old, new), rtol=0, atol=atol)


@settings(max_examples=50, deadline=None)
@given(rows=sides, columns=sides, side=st.integers(1, 20))
def test_positions_at_any_grid(rows: int, columns: int, side: int) -> None:
    """PyTorch's numbers; rows of the matrices sum to one, so a constant table is constant."""
    old, new, positions = (side, side), (rows, columns), table((side, side), torch.float64)
    ours = resample_positions(positions, old, new)
    expected = positions if new == old else interpolated(positions, old, new)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    constant = resample_positions(torch.full_like(positions, 0.7), old, new)
    torch.testing.assert_close(constant, torch.full_like(constant, 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exporting", [False, True])
def test_the_stored_grid_is_the_identity(exporting: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the matrices of an exported program; the official rule itself would not be, nor is another such grid."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    for grid in ((14, 14), (28, 28), (4, 7), (1, 1)):
        positions = table(grid, dtype)
        found = resample_positions(positions, grid, grid)
        assert torch.equal(found, positions)
        assert (found is positions) != exporting
    positions = table((14, 14))
    assert (positions - interpolated(positions, (14, 14), (14, 14))).abs().max() > 1e-3
    for other in ((7, 28), (14, 15), (18, 14)):
        expected = interpolated(positions, (14, 14), other)
        torch.testing.assert_close(resample_positions(positions, (14, 14), other), expected, rtol=0, atol=1e-6)


def test_positions_keep_their_dtype_and_gradient() -> None:
    assert resample_positions(table((4, 4), torch.bfloat16), (4, 4), (6, 3)).dtype == torch.bfloat16
    positions = table((3, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: resample_positions(t, (3, 3), (2, 5)), (positions,))


@settings(max_examples=20, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_every_size_runs_with_positions_of_its_own_grid(height: int, width: int) -> None:
    x = image(height, width)
    tokens, grid = MODEL.embed(x)
    assert grid == (-(-height // 4), -(-width // 4))
    padded = F.pad(x, (0, -width % 4, 0, -height % 4))
    patches = MODEL.patch_embed.proj(padded).flatten(2).mT
    stored = MODEL.pos_embed[:, 1:]
    positions = stored if grid == (4, 4) else interpolated(stored, (4, 4), grid)
    torch.testing.assert_close(tokens[:, 1:], patches + positions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, :1], (MODEL.cls_token + MODEL.pos_embed[:, :1]).expand(2, -1, -1))
    assert MODEL(x).isfinite().all()


@torch.no_grad()
def test_headless_by_default_with_a_head_on_request() -> None:
    assert all(config.num_classes == 0 for config in VARIANTS.values())
    x = image(16, 16)
    token = MODEL.forward_features(x)[:, 0]
    assert torch.equal(MODEL(x), token)
    assert torch.equal(MODEL.get_classifier()(token), token)
    assert not [key for key in MODEL.state_dict() if key.startswith("head")]
    model = build(num_classes=5)
    torch.testing.assert_close(model(x), model.head(model.forward_features(x)[:, 0]))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    with pytest.raises(UserError, match="one pooling"):
        model.reset_classifier(3, global_pool="avg")


def test_variants_and_preprocessing() -> None:
    for name, config in VARIANTS.items():
        assert config.patch_size == (8 if name.endswith("8") else 16)
        assert config.dim == 64 * config.heads
        cfg = preprocessing(config)
        assert (cfg["input_size"][1:], 224 / cfg["crop_pct"]) == ((224, 224), 256)


@torch.no_grad()
def test_initialisation() -> None:
    with torch.device("meta"):
        models = (DINO(DINOConfig(dim=48, heads=3, depth=2)), ProjectionHead(64, 300, 128, 64, batch_norm=True))
    for model in (module.to_empty(device="cpu") for module in models):
        for tensor in model.state_dict().values():
            tensor.fill_(math.nan if tensor.is_floating_point() else -1)
        model.init_weights()
        for key, tensor in model.state_dict().items():
            leaf = key.rsplit(".", 1)[-1]
            if key == "last_layer.weight_v":
                assert tensor.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.05)
                assert tensor.abs().max() <= 64**-0.5
            elif key.startswith("patch_embed"):
                assert 0 < tensor.abs().max() <= (3 * 16 * 16) ** -0.5, key
            elif tensor.ndim < 2 or leaf == "weight_g":
                assert (tensor == (leaf in ("weight", "weight_g", "running_var"))).all(), key
            else:
                assert tensor.std().item() == pytest.approx(0.02, rel=5 / (2 * tensor.numel()) ** 0.5), key


def test_decay_and_depth() -> None:
    """The official training decays every parameter but biases and vectors, class token and positions included."""
    assert MODEL.no_weight_decay() == set()
    rates = [block.drop_path.drop_prob for block in build(depth=4, drop_path=0.3).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("size", [24, (12, 20)])
@torch.no_grad()
def test_a_training_checkpoint_of_another_grid(size: int | tuple[int, int], tmp_path: Path) -> None:
    """The teacher's backbone without its projection head, carried by the official rule: the official answer there."""
    source, head = build(1), ProjectionHead(16, 32, 8, 4)
    backbone = {f"module.backbone.{key}": tensor for key, tensor in source.state_dict().items()}
    projection = {f"module.head.{key}": tensor for key, tensor in head.state_dict().items()}
    torch.save({"student": {}, "teacher": backbone | projection, "epoch": 3}, tmp_path / "checkpoint.pth")
    model = build(2, img_size=size)
    load_weights(model, tmp_path / "checkpoint.pth")
    x = image(*model.config.image)
    torch.testing.assert_close(model(x), source(x))


def test_only_the_projection_head_is_dropped() -> None:
    model = build(num_classes=5)
    state = model.state_dict()
    more = state | {"head.mlp.0.weight": torch.ones(1), "head.last_layer.weight_g": torch.ones(1)}
    adapted = model.convert_state_dict(more)
    assert adapted.keys() == state.keys()
    assert {"head.weight", "head.bias"} < adapted.keys()
    assert adapted["pos_embed"] is state["pos_embed"]
    assert len(more) == len(state) + 2


@pytest.mark.parametrize("rows", [1, 16, 18])
def test_refusals_are_one_line(rows: int) -> None:
    with pytest.raises(UserError, match=f"has {rows} rows, no square grid") as caught:
        MODEL.convert_state_dict(MODEL.state_dict() | {"pos_embed": torch.ones(1, rows, 16)})
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_timms_files_fit() -> None:
    theirs = timm.create_model("vit_small_patch16_224", embed_dim=48, depth=2, num_heads=3, num_classes=0).eval()
    model = DINO(DINOConfig(dim=48, depth=2, heads=3)).eval()
    model.load_state_dict(model.convert_state_dict(theirs.state_dict()))
    torch.testing.assert_close(model(image(224, 224)), theirs(image(224, 224)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"dim": 50, "heads": 4}, {"drop_path": 1.0}, {"patch_size": 0}, {"img_size": (16, 0)}, {"num_classes": -1}],
)
def test_impossible_options_are_one_line(options: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        DINOConfig(**options)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_projection_head_has_the_specs_fingerprint() -> None:
    """The official head 384 -> 4096 in float64, under the fill of ``test_fingerprints`` with lengths of one."""
    head = ProjectionHead(384, 4096).double().eval()
    state = head.state_dict()
    filled = {key: value(key, tensor) for key, tensor in state.items()} | {
        "last_layer.weight_g": torch.ones_like(state["last_layer.weight_g"])
    }
    head.load_state_dict(filled)
    y = head(1.7 * torch.from_numpy(uniform("input", 2 * 384)).reshape(2, 384))
    measured = [y[0, 0].item(), y[0, 1].item(), y[1, -1].item(), y.mean().item(), y.norm().item()]
    expected = [-0.125787564, -0.09166668982, -0.01138425228, -0.0001796108869, 5.631209729]
    assert measured == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_projection_head_keys(batch_norm: bool) -> None:
    head = ProjectionHead(16, batch_norm=batch_norm)
    shapes = {key: tuple(p.shape) for key, p in head.named_parameters() if ".bias" not in key and p.ndim > 1}
    first, second, third = (0, 3, 6) if batch_norm else (0, 2, 4)
    assert shapes == {
        f"mlp.{first}.weight": (2048, 16),
        f"mlp.{second}.weight": (2048, 2048),
        f"mlp.{third}.weight": (256, 2048),
        "last_layer.weight_g": (65536, 1),
        "last_layer.weight_v": (65536, 256),
    }


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_projection_head_of_any_depth(layers: int) -> None:
    """One layer has no number, as in DINO's code."""
    keys = [f"{2 * i}." for i in range(layers)] if layers > 1 else [""]
    head = ProjectionHead(16, 32, 8, 4, nlayers=layers)
    assert [key for key in head.state_dict() if key.startswith("mlp")] == [
        f"mlp.{key}{kind}" for key in keys for kind in ("weight", "bias")
    ]
    assert head(torch.randn(3, 16)).shape == (3, 32)
    assert all((head.get_parameter(f"mlp.{key}bias") == 0).all() for key in keys)
    with pytest.raises(UserError, match="nlayers=0 must be 1 or more"):
        ProjectionHead(16, nlayers=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_last_layer_is_weight_normalised(frozen: bool) -> None:
    """As PyTorch's parametrisation, in result and gradients, for lengths that are not one."""
    torch.manual_seed(0)
    head = ProjectionHead(16, 32, 8, 4, norm_last_layer=frozen).double()
    layer = head.last_layer
    assert layer.weight_g.requires_grad != frozen
    with torch.no_grad():
        layer.weight_g.add_(torch.rand_like(layer.weight_g))
    twin = nn.utils.parametrizations.weight_norm(nn.Linear(4, 32, bias=False).double())
    length, direction = twin.parametrizations.weight.original0, twin.parametrizations.weight.original1
    with torch.no_grad():
        length.copy_(layer.weight_g)
        direction.copy_(layer.weight_v)
    x = torch.randn(5, 16, dtype=torch.float64)
    expected = twin(head.mlp(x) / head.mlp(x).norm(dim=1, keepdim=True))
    scores = head(x)
    torch.testing.assert_close(scores, expected)
    scores.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.weight_v.grad, direction.grad)
    if not frozen:
        torch.testing.assert_close(layer.weight_g.grad, length.grad)


def test_projection_head_in_half_precision() -> None:
    head, x = ProjectionHead(16, 32, 8, 4), torch.randn(3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head(x).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.requires_grad)
    assert head.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
