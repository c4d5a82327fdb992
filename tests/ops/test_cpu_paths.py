"""The paths taken for a processor's sake equal their plain twins, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from anyres.ops.attention import attend, explicit_attention
from anyres.ops.convolution import DepthwiseConv2d, StridedConv2d


@pytest.mark.parametrize(("n", "m", "heads", "width"), [(1, 1, 1, 4), (50, 50, 2, 16), (64, 4, 3, 8)])
def test_explicit_attention_equals_pytorchs(n: int, m: int, heads: int, width: int) -> None:
    torch.manual_seed(0)
    shapes = [(2, heads, n, width), (2, heads, m, width), (2, heads, m, width)]
    ours = [torch.randn(s, requires_grad=True) for s in shapes]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    out, expected = explicit_attention(*ours), F.scaled_dot_product_attention(*theirs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_bf16_on_the_processor_is_the_same_function() -> None:
    torch.manual_seed(0)
    wide = [torch.randn(2, 2, 9, 8) for _ in range(3)]
    narrow = attend(*(t.bfloat16() for t in wide))
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), attend(*wide), rtol=0.05, atol=0.03)


def test_depthwise_is_a_grouped_convolution_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, 3, stride=2, padding=1, multiplier=4)
    plain = torch.nn.Conv2d(6, 24, 3, 2, 1, groups=6)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 9, 7)
    assert torch.equal(ours(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        inside = ours(x.bfloat16())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain(x.bfloat16().float()))


KERNELS = {3: (3, 2, 1), 4: (4, 4, 0)}
"""Kernel, stride, padding: of stems, of patches."""


@pytest.mark.parametrize(
    ("kernel", "height", "width"),
    [(3, 1, 1), (3, 2, 1), (3, 3, 1), (3, 33, 1), (3, 33, 2), (3, 4, 4), (4, 4, 4), (4, 33, 4), (4, 33, 5), (4, 8, 8)],
)
def test_strided_is_a_convolution_on_a_single_column_too(kernel: int, height: int, width: int) -> None:
    """In bf16, by autocast or throughout, and its gradients are finite."""
    torch.manual_seed(0)
    _, stride, padding = KERNELS[kernel]
    for _ in range(8):
        ours = StridedConv2d(64, 128, kernel_size=kernel, stride=stride, padding=padding)
        plain = torch.nn.Conv2d(64, 128, *KERNELS[kernel])
        plain.load_state_dict(ours.state_dict())
        x = torch.randn(8, 64, height, width)
        truth = plain(x)
        assert torch.equal(ours(x), truth)
        with torch.autocast("cpu", torch.bfloat16):
            out = ours(x)
        out.float().sum().backward()
        assert ours.weight.grad is not None
        assert ours.weight.grad.isfinite().all()
        torch.testing.assert_close(out.float(), truth, rtol=0.05, atol=0.05)
        narrow = ours.bfloat16()(x.bfloat16())
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(narrow.float(), truth, rtol=0.05, atol=0.05)
