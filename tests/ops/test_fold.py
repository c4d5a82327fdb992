"""Each folding is the composition that it replaces, exactly in float64, and shares nothing with what it was made of."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.ops import fold


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def norm(module: nn.Module) -> nn.Module:
    """A norm with nothing left at its beginning."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = draw(*tensor.shape).abs() + 0.1 if "var" in name else draw(*tensor.shape)
    return module.double().eval()


A, B, C = (nn.Linear(i, o).double() for i, o in ((6, 5), (6, 5), (5, 4)))
BARE = nn.Linear(6, 5, bias=False).double()
SCALE, SHIFT, GAMMA = draw(6), draw(6), draw(5)
CONV = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
BATCH, LAYER = norm(nn.BatchNorm2d(6)), norm(nn.LayerNorm(6, eps=1e-3))
POINTWISE = nn.Conv2d(6, 5, 1).double()

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "fold_input_affine": (lambda: fold.fold_input_affine(A, SCALE, SHIFT), lambda x: A(SCALE * x + SHIFT), (3, 6)),
    "fold_input_affine, no bias": (
        lambda: fold.fold_input_affine(BARE, SCALE, SHIFT),
        lambda x: BARE(SCALE * x + SHIFT),
        (3, 6),
    ),
    "fold_output_scale": (lambda: fold.fold_output_scale(A, GAMMA), lambda x: GAMMA * A(x), (3, 6)),
    "fold_output_scale, none": (lambda: fold.fold_output_scale(A, None), A, (3, 6)),
    "scale": (lambda: fold.scale(A, -0.3), lambda x: -0.3 * A(x), (3, 6)),
    "concat_outputs": (lambda: fold.concat_outputs([A, B]), lambda x: torch.cat((A(x), B(x)), 1), (3, 6)),
    "sum_outputs": (lambda: fold.sum_outputs([A, B]), lambda x: A(x[:, :6]) + B(x[:, 6:]), (3, 12)),
    "compose": (lambda: fold.compose(A, C), lambda x: C(A(x)), (3, 6)),
    "convolution": (lambda: fold.convolution(CONV, BATCH), lambda x: BATCH(CONV(x)), (2, 4, 7, 5)),
    "convolution, no norm": (lambda: fold.convolution(CONV), CONV, (2, 4, 7, 5)),
    "depthwise": (
        lambda: fold.depthwise(CONV.weight[:, :1], CONV.bias, CONV.weight),
        lambda x: F.conv2d(x, CONV.weight[:, :1], CONV.bias, padding=1, groups=6),
        (2, 6, 5, 4),
    ),
    "pointwise": (lambda: fold.pointwise(POINTWISE), lambda x: POINTWISE(x[:, :, None, None])[:, :, 0, 0], (3, 6)),
    "layer_norm": (lambda: fold.layer_norm(LAYER), LAYER, (3, 6)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_what_it_replaces(case: str) -> None:
    make, composed, shape = CASES[case]
    x, folded = draw(*shape), make()
    torch.testing.assert_close(folded(x), composed(x), rtol=1e-12, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("case", CASES)
def test_shares_no_weights(case: str) -> None:
    make, composed, shape = CASES[case]
    x = draw(*shape)
    before, folded = composed(x).detach(), make()
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    torch.testing.assert_close(composed(x), before, rtol=0, atol=0)


def test_dtype_is_the_layers_and_the_arithmetic_is_wider() -> None:
    """A bf16 layer's fold is rounded once: it is the nearest bf16 to the exact product."""
    layer, scale = nn.Linear(64, 64).bfloat16(), torch.randn(64).bfloat16()
    folded = fold.fold_input_affine(layer, scale, torch.zeros(64).bfloat16())
    assert folded.weight.dtype == torch.bfloat16
    torch.testing.assert_close(folded.weight, (layer.weight.double() * scale.double()).bfloat16(), rtol=0, atol=0)
