"""Any height and width: finite logits, the convolution's own grid, and nothing changed where official code runs."""

import math
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.contract import Backbone
from anyres.models.resformer import sine_table
from tests.models.zoo import SMALL, SMALLEST, build, image, stirred

MODELS = {family: stirred(build(family, classes=7)) for family in SMALL}
sides = st.integers(1, 320)


@pytest.mark.parametrize("family", SMALL)
@settings(max_examples=20, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_every_size_runs(family: str, height: int, width: int) -> None:
    model, x, stride = MODELS[family], image(height, width, 1), SMALL[family].stride
    features = model.forward_features(x)
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    channels = model.feature_info[-1]["num_chs"]
    assert model.patch_tokens(features).shape == (1, rows * columns, channels)
    logits = model.forward_head(features)
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


@lru_cache(maxsize=1)
def smallest(family: str) -> Backbone:
    options = {"any_size": True} if family == "resmlp" else {}
    return stirred(create_model(SMALLEST[family], 7, **options))


@pytest.mark.parametrize("family", SMALLEST)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(height=st.integers(16, 1024), width=st.integers(16, 1024))
@example(height=1, width=1)
@example(height=225, width=200)
@torch.no_grad()
def test_official_variants_at_every_size(family: str, height: int, width: int) -> None:
    logits = smallest(family)(image(height, width, 1))
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize(("height", "width"), [(33, 8), (65, 40), (3, 2)])
def test_training_at_odd_sizes(family: str, height: int, width: int) -> None:
    """Gradients are finite and reach every parameter that has a part in the result."""
    model = stirred(build(family)).train()
    model(image(height, width)).square().sum().backward()
    unreached = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert not unreached


@pytest.mark.parametrize("family", ["resformer", "resmlp", "deit", "deit3", "hmlp", "cait", "dino"])
@settings(max_examples=10, deadline=None)
@given(height=sides, width=sides)
@torch.no_grad()
def test_padding_is_zeros_to_the_patch(family: str, height: int, width: int) -> None:
    model, x, stride = MODELS[family], image(height, width, 1), SMALL[family].stride
    padded = F.pad(x, (0, -width % stride, 0, -height % stride))
    torch.testing.assert_close(model(x), model(padded), rtol=0, atol=0)


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_the_border_is_seen(family: str) -> None:
    """230 px is 14 patches of 16 and 6 px: the official ResFormer never looks at those."""
    model, x = MODELS[family], image(67, 67, 1)
    bottom, right = x.clone(), x.clone()
    bottom[..., -1, :] += 1
    right[..., :, -1] += 1
    assert (model(x) - model(bottom)).abs().max() > 1e-6
    assert (model(x) - model(right)).abs().max() > 1e-6


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_a_rectangle_is_not_another_rectangle(family: str) -> None:
    """The same tokens on 4x9, 6x6 and 9x4 patches give three answers (officially 64x144 px is folded into 6x6)."""
    model, p = MODELS[family], SMALL[family].stride
    patches = image(p, 36 * p, 1).unfold(3, p, p)  # (1, 3, p, 36, p)

    def lay(rows: int, columns: int) -> Tensor:
        grid = patches.reshape(3, p, rows, columns, p).permute(0, 2, 1, 3, 4)
        return model(grid.reshape(1, 3, rows * p, columns * p))

    logits = [lay(4, 9), lay(6, 6), lay(9, 4)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (logits[a] - logits[b]).abs().max() > 1e-5


@torch.no_grad()
def test_restv2_is_uncropped_at_multiples_of_32() -> None:
    """There the shuffled value branch has the grid's very size in all stages, so cropping is the identity."""
    model = MODELS["restv2"]
    seen = []
    hooks = [
        block.attn.up.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[-2:])))
        for blocks in (model.stage1, model.stage2, model.stage3, model.stage4)
        for block in blocks
    ]
    model(image(64, 96, 1))
    assert seen == [(16, 24), (8, 12), (4, 6), (4, 6), (2, 3)]
    seen.clear()
    model(image(65, 97, 1))  # 17 x 25 tokens, rounded up to 24 x 32, and so on
    assert seen == [(24, 32), (12, 16), (6, 8), (6, 8), (3, 4)]
    for hook in hooks:
        hook.remove()


def test_sine_table_has_the_specs_values() -> None:
    table = sine_table((8, 8), 192, torch.device("cpu"))[0]
    assert table.dtype == torch.float32
    expected = [0.70710671, 0.70710683, 0.60380894]
    torch.testing.assert_close(table[:3, 0, 5], torch.tensor(expected), rtol=0, atol=6e-8)
    torch.testing.assert_close(table[:2, 7, 0], torch.tensor([-7.8e-7, 1.0]), rtol=0, atol=1e-8)
    torch.testing.assert_close(table[96:98, 2, 3], torch.tensor([3.9e-7, -1.0]), rtol=0, atol=1e-8)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_sine_table_is_normalised_by_h_and_by_w(rows: int, columns: int) -> None:
    """Its row channels are those of a square of ``rows``, its column channels those of a square of ``columns``."""
    cpu = torch.device("cpu")
    table = sine_table((rows, columns), 24, cpu)[0]
    torch.testing.assert_close(table[:12, :, 0], sine_table((rows, rows), 24, cpu)[0, :12, :, 0], rtol=0, atol=0)
    torch.testing.assert_close(table[12:, 0], sine_table((columns, columns), 24, cpu)[0, 12:, 0], rtol=0, atol=0)
    assert (table[:12] == table[:12, :, :1]).all()
    assert (table[12:] == table[12:, :1]).all()


def test_resmlp_warns_once_and_only_in_evaluation_off_its_grid() -> None:
    model = create_model("resmlp_nano", num_classes=2)
    model(image(96, 96))  # training: silent, and pytest makes a warning an error
    model.eval()
    model(image(64, 64))
    with pytest.warns(UserWarning, match="grid of 8x8 tokens and now sees 12x10"):
        model(image(96, 80))
    model(image(32, 32))  # said once
    create_model("resmlp_nano", any_size=True).eval()(image(96, 96))


@torch.no_grad()
def test_resmlp_at_its_trained_rectangle_is_not_resampled() -> None:
    model = create_model("resmlp_nano", num_classes=2, img_size=(64, 96)).eval()
    assert model.config.grid == (8, 12)
    assert model.blocks[0].attn.weight.shape == (96, 96)
    model(image(64, 96))
    with pytest.warns(UserWarning, match="8x12 tokens and now sees 12x8"):
        model(image(96, 64))


@torch.no_grad()
def test_resmlp_gives_a_constant_image_one_answer_at_every_size() -> None:
    """Token mixing that averages, biases aside, cannot tell sizes of a constant image apart."""
    model = stirred(build("resmlp"))
    for block in model.blocks:
        block.attn.weight.copy_(block.attn.weight.mean().expand_as(block.attn.weight))
        block.attn.bias.fill_(0.1)
    expected = model(torch.ones(1, 3, 64, 64))
    for height, width in ((8, 8), (96, 40), (128, 256)):
        torch.testing.assert_close(model(torch.ones(1, 3, height, width)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resformer_nano", {"dim": 30, "heads": 4}),
        ("resformer_nano", {"drop_path": 1.0}),
        ("resformer_nano", {"patch_size": 0}),
        ("restv2_nano", {"reductions": (3, 1, 1, 1)}),
        ("restv2_nano", {"drop_path": -0.1}),
        ("restv2_nano", {"heads": (3, 1, 1, 1)}),
        ("restv2_nano", {"num_classes": -1}),
        ("resmlp_nano", {"img_size": 0}),
        ("resmlp_nano", {"drop_path": 2.0}),
    ],
)
def test_impossible_options_are_one_line(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        create_model(name, **options)
    assert "\n" not in str(caught.value)
