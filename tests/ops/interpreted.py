"""The Triton kernels in Triton's interpreter, on a CPU. ``test_triton.py`` runs this file in a process of its own:

    TRITON_INTERPRET=1 python -m pytest --noconftest tests/ops/interpreted.py

as the interpreter is chosen when triton is first imported, and may be imported already in a worker of the whole suite.
"""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyres.ops import attention, mixed_heads, residual
from anyres.ops import triton as kernels
from anyres.ops.kernels import kernel_operations
from anyres.ops.residual import DropPath
from anyres.ops.triton_switch import triton_kernels
from tests.models.zoo import build, stirred

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""|a - b| / |b| of an answer and of each gradient, beside float64's."""

# images, heads, queries, keys, channels of a head: odd counts, several tiles, heads and widths that are no power of 2
SHAPES = [(2, 3, 5, 7, 96), (1, 4, 37, 35, 48), (1, 6, 33, 18, 32), (1, 8, 17, 1, 40)]
FEW = [(2, 2, 9, 20, 64)]


def leaves(*shapes: Sequence[int], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def packed(b: int, g: int, n: int, m: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as (b, g, _, d), as the models give them: views of tokens."""
    return [t.unflatten(2, (g, d)).transpose(1, 2) for t in leaves((b, n, g * d), *[(b, m, g * d)] * 2, dtype=dtype)]


def apart(ours: Tensor, truth: Tensor) -> float:
    assert ours.shape == truth.shape
    ours, truth = ours.detach().double(), truth.detach().double()
    size = truth.norm()
    return float((ours - truth).norm() / size) if size > 1e-9 else float(ours.norm())


def compare(ours: Callable[..., Any], twin: Callable[..., Any], inputs: list[Any], dtype: torch.dtype) -> None:
    """Answers and gradients of both for random upstream gradients, against the twin in float64."""
    wide = [copy_of(each, torch.float64) for each in inputs]
    narrow = [copy_of(each, None) for each in inputs]
    answers, truths = (f(*given) for f, given in ((ours, narrow), (twin, wide)))
    answers, truths = (each if isinstance(each, tuple) else (each,) for each in (answers, truths))
    limit = TOLERANCE[dtype]
    for answer, truth in zip(answers, truths, strict=True):
        assert apart(answer, truth) < limit
    upstream = [torch.randn(truth.shape, generator=torch.Generator().manual_seed(9)) for truth in truths]
    torch.autograd.backward(answers, [g.to(a.dtype) for g, a in zip(upstream, answers, strict=True)])
    torch.autograd.backward(truths, [g.double() for g in upstream])
    for number, (given, true) in enumerate(zip(narrow, wide, strict=True)):
        for mine, theirs in zip(parameters(given), parameters(true), strict=True):
            assert mine.grad is not None, number
            assert mine.grad.dtype == mine.dtype
            assert apart(mine.grad, theirs.grad) < 4 * limit, number


def copy_of(given: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(given, nn.Module):
        return copy.deepcopy(given) if dtype is None else copy.deepcopy(given).to(dtype)
    return given.detach().clone().to(dtype or given.dtype).requires_grad_() if isinstance(given, Tensor) else given


def parameters(given: Any) -> list[Tensor]:
    return list(given.parameters()) if isinstance(given, nn.Module) else [given] if isinstance(given, Tensor) else []


CASES = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, dtype) for shape in FEW for dtype in (torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_talking_heads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = shape[1]
    weights = leaves((g, g), (g,), (g, g), (g,), dtype=torch.float32, seed=1)
    query, key, value = packed(*shape, dtype)
    inputs = [query * shape[-1] ** -0.5, key, value, *weights]
    compare(kernels.talking_heads, mixed_heads.talking_heads, inputs, dtype)


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_normed_heads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = shape[1]
    weights = leaves((g, g), (g,), dtype=torch.float32, seed=1)
    query, key, value = packed(*shape, dtype)
    inputs = [query * shape[-1] ** -0.5, key, value, *weights]
    compare(kernels.normed_heads, mixed_heads.normed_heads, inputs, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normed_heads_of_even_attention(dtype: torch.dtype) -> None:
    """As in a fresh model: P is 1 / m but for its last bits, and what counts is the difference."""
    query, key, value = (t.detach() * s for t, s in zip(packed(1, 2, 40, 40, 32, dtype), (0.02, 0.02, 1), strict=True))
    inputs = [query, key, value, torch.eye(2), None]
    truth = mixed_heads.normed_heads(*(t if t is None else t.double() for t in inputs))
    assert apart(kernels.normed_heads(*inputs), truth) < TOLERANCE[dtype]


@pytest.mark.parametrize(("shape", "dtype"), [*CASES, ((1, 1, 70, 66, 32), torch.float32)], ids=str)
def test_attend_plus(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    b, g, n, _, d = shape
    norm = nn.LayerNorm(g * d, eps=1e-6)
    with torch.no_grad():
        norm.weight.normal_(1, 0.5)
        norm.bias.normal_()
    added = leaves((b, n, g * d), dtype=dtype, seed=2)[0] * 3 + 1
    compare(kernels.attend_plus, attention.attend_plus, [*packed(*shape, dtype), added, norm], dtype)


@pytest.mark.parametrize(("rows", "channels"), [((3, 5), 48), ((2, 9), 192), ((1, 3), 65)])
@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_add_norm(rows: tuple[int, int], channels: int, gamma: bool, affine: bool) -> None:
    norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=affine)
    x, y = leaves((*rows, channels), (*rows, channels), dtype=torch.float32)
    scale = leaves((channels,), dtype=torch.float32, seed=3)[0] if gamma else None
    compare(kernels.add_norm, residual.add_norm, [x, y, scale, None, norm], torch.float32)


@pytest.mark.parametrize(
    ("trunk", "branch", "normed"),
    [(torch.bfloat16, torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16, torch.bfloat16)],
)
def test_add_norm_in_half_precision(trunk: torch.dtype, branch: torch.dtype, normed: torch.dtype) -> None:
    """Alone, and as under autocast: a float32 trunk and γ, a bf16 branch."""
    x, y = leaves((2, 5, 64), dtype=trunk)[0], leaves((2, 5, 64), dtype=branch, seed=1)[0]
    gamma = leaves((64,), dtype=trunk, seed=2)[0]
    norm = nn.LayerNorm(64).to(trunk)
    assert [t.dtype for t in kernels.add_norm(x, y, gamma, None, norm)] == [trunk, normed]
    compare(kernels.add_norm, residual.add_norm, [x, y, gamma, None, norm], torch.bfloat16)


def test_add_norm_drops_the_same_images() -> None:
    x, y = leaves((8, 3, 16), (8, 3, 16), dtype=torch.float32)
    norm, drop = nn.LayerNorm(16), DropPath(0.5).train()
    torch.manual_seed(0)
    expected = residual.add_norm(x, y, None, drop, norm)
    after = torch.rand(1)
    torch.manual_seed(0)
    found = kernels.add_norm(x, y, None, drop, norm)
    assert torch.equal(torch.rand(1), after)
    torch.testing.assert_close(found, expected)
    assert 0 < (expected[0] == x).all(2).all(1).sum() < 8


@pytest.mark.parametrize("family", ["cait", "rest", "restv2", "deit3"])
def test_whole_models_with_kernels(family: str) -> None:
    plain = stirred(build(family, drop_path=0.2)).train()
    fast = copy.deepcopy(plain)
    assert kernel_operations(fast, (40, 33), torch.device("cpu")) == PARTS[family]
    x = torch.randn(2, 3, 40, 33)
    answers = []
    for model in (fast, plain):
        torch.manual_seed(0)
        with triton_kernels(model is fast):
            logits = model(x)
            logits.square().sum().backward()
        answers.append(logits)
    assert apart(*answers) < 1e-3  # 32 px a token: ResTv1's norm magnifies what is rounded
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, name
        scale = theirs.grad.norm() + 1e-3 * theirs.norm()
        assert (ours.grad - theirs.grad).norm() < 2e-2 * scale, name


PARTS = {
    "cait": {"talking_heads", "add_norm"},
    "rest": {"normed_heads", "add_norm"},
    "restv2": {"attend_plus", "add_norm"},
    "deit3": {"add_norm"},
}
"""Operations with a kernel in each."""


def test_the_benchmark_of_a_kernel() -> None:
    gpu = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "gpu.py"))
    x, y = leaves((2, 3, 8), (2, 3, 8), dtype=torch.bfloat16)
    inputs = [x, y, None, None, nn.LayerNorm(8, dtype=torch.bfloat16)]
    clock = gpu["Clock"](torch.device("cpu"), 1, 0.0, side=16)
    facts = gpu["kernel_alone"]((1, lambda _: ("add_norm", residual.add_norm, inputs)), clock, compiled=False)
    assert facts["off"] < 0.01
    assert facts["forward"]["ratio"] > 0
    assert facts["forward and backward"]["ours"] == "kernel"


def test_a_map_that_was_cut_lies_anywhere_in_memory() -> None:
    maps = torch.randn(2, 32, 6, 7).requires_grad_()
    tokens = maps[:, :, :5, :6].flatten(2).transpose(1, 2)  # (b, n, c), channels far apart
    query, key, value = packed(2, 1, 30, 9, 32, torch.float32)
    norm = nn.LayerNorm(32)
    found, expected = (f(query, key, value, tokens, norm, 1.0) for f in (kernels.attend_plus, attention.attend_plus))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), maps)[0] for out in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_many_heads_take_the_plain_way() -> None:
    query, key, value = packed(1, 9, 4, 4, 16, torch.float32)
    weights = leaves((9, 9), (9,), (9, 9), (9,), dtype=torch.float32)
    found, expected = (f.talking_heads(query, key, value, *weights) for f in (kernels, mixed_heads))
    assert torch.equal(found, expected)


def ops() -> list[tuple[Any, tuple[Any, ...]]]:
    query, key, value = packed(1, 2, 9, 7, 16, torch.float32)
    mixing, offset, after, bias = leaves((2, 2), (2,), (2, 2), (2,), dtype=torch.float32)
    x, y = leaves((2, 3, 32), (2, 3, 32), dtype=torch.float32)
    added, weight, shift = leaves((1, 9, 32), (32,), (32,), dtype=torch.float32)
    library = torch.ops.anyres
    return [
        (library.talking_heads.default, (query, key, value, mixing, offset, after, bias)),
        (library.normed_heads.default, (query, key, value, mixing, None, 1e-5)),
        (library.attend_plus.default, (query, key, value, added, weight, shift, 0.25, 1e-6)),
        (library.add_norm.default, (x, y, weight, None, weight, shift, 1e-6)),
    ]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own check reads it
@pytest.mark.parametrize(("op", "args"), ops(), ids=lambda each: str(each) if not isinstance(each, tuple) else "")
def test_opcheck(op: Any, args: tuple[Any, ...]) -> None:
    """Schema, autograd registration, fake tensors, and tracing through AOT autograd."""
    leaf = [each.detach().requires_grad_() if isinstance(each, Tensor) else each for each in args]
    torch.library.opcheck(op, tuple(leaf))
