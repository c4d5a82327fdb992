"""A folded model is the same function at any size and batch, with fewer operations, and cannot be trained."""

import copy
import re
from functools import cache
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anyres.config import UserError
from anyres.deploy.fuse import fuse
from anyres.deploy.fuse.folded import Folded
from anyres.deploy.fuse.tables import KEPT_GRIDS, GridCache
from anyres.deploy.fuse.tracing import is_tracing_for_cpu, tracing_for_cpu
from anyres.evaluation.speed import macs
from anyres.flow import Size
from anyres.models import create_model
from anyres.models.contract import Backbone
from tests.models.zoo import SMALL, SMALLEST, build, image, stirred
from tests.test_docs import ROOT

TOLERANCE = {"rest": 3e-5}
"""ResT v1's instance norm magnifies rounding: unfolded, its float32 is as far from float64."""
TRACED = ("cait", "patchconvnet", "rest", "restv2", "resformer", "resmlp", "threethings")
"""Families whose traced form differs, or whose tables do."""


@cache
def pair(family: str) -> tuple[Backbone, Folded]:
    model = stirred(build(family))
    return model, fuse(model)


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


class Operations(TorchDispatchMode):
    """Counts what PyTorch computes or moves; views are free."""

    FREE = ("aten::_unsafe_view", "aten::empty", "aten::promote_types")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func.name().split(".")[0] not in self.FREE
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def operations(model: nn.Module, x: Tensor) -> int:
    with Operations() as counted:
        model(x)
    return counted.count


@pytest.mark.parametrize("family", SMALL)
@settings(max_examples=6, deadline=None)
@given(height=st.integers(1, 160), width=st.integers(1, 160), batch=st.sampled_from([1, 3]))
@example(height=64, width=64, batch=3)
@torch.no_grad()
def test_is_the_same_function_at_any_size(family: str, height: int, width: int, batch: int) -> None:
    model, folded = pair(family)
    x = image(height, width, batch)
    assert deviation(folded(x), model(x)) <= TOLERANCE.get(family, 1e-5)


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_float64_and_bf16(family: str) -> None:
    """In float64 equal to 1e-10; in bf16, made from the folded float32, hardly further from it than bf16 is anyway."""
    model, folded = pair(family)
    wide = copy.deepcopy(model).double()
    x = torch.cat([image(64, 96, 8), image(96, 64, 8).mT])
    truth = wide(x.double())
    assert deviation(fuse(wide)(x.double()), truth) <= 1e-10
    narrow = [copy.deepcopy(m).bfloat16()(x.bfloat16()).double() for m in (model, folded)]
    plain, ours = ((found - truth).square().mean().sqrt().item() for found in narrow)
    assert ours <= 1.5 * plain


@pytest.mark.parametrize("family", SMALL)
@torch.no_grad()
def test_without_classes(family: str) -> None:
    model = stirred(build(family, classes=0))
    assert deviation(fuse(model)(image(70, 33)), model(image(70, 33))) <= TOLERANCE.get(family, 1e-5)


@pytest.mark.parametrize("family", SMALL)
def test_the_model_is_untouched_and_the_folded_one_wants_no_gradient(family: str) -> None:
    model = build(family)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folded = fuse(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.fill_(float("nan"))
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("family", TRACED)
@torch.no_grad()
def test_traced_at_one_size(family: str) -> None:
    """Its tables are constants."""
    model, x = pair(family)[0], image(40, 72, 2)
    baked = fuse(model, size=(40, 72))
    assert deviation(baked(x), model(x)) <= TOLERANCE.get(family, 1e-5)
    program = torch.export.export(baked, (x,))
    assert deviation(program.module()(x), model(x)) <= TOLERANCE.get(family, 1e-5)
    made = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not made & {"aten.arange.default", "aten.einsum.default", "aten.sin.default"}
    if any(isinstance(module, GridCache) for module in baked.modules()):
        with pytest.raises(UserError, match=r"folded for \(5, 9\) tokens and got \(8, 8\)"):
            baked(image(64, 64))


ONE_FORM = {"cait": "stack", "rest": "rsqrt", "restv2": "pixel_shuffle", "deit": "rms_norm", "patchconvnet": "rms_norm"}
"""An operation that one of each family's two forms has alone: for CPU compilers, or of ResTv2 the plain one."""


@pytest.mark.parametrize("family", ONE_FORM)
@torch.no_grad()
def test_the_form_for_cpus_is_taken_only_where_it_is_switched_on(family: str) -> None:
    """Eager or traced, both forms are the same function; neither tracing nor exporting chooses."""
    model, folded = pair(family)
    x, names = image(40, 72, 2), {}
    for on in (False, True):
        with tracing_for_cpu(on):
            assert deviation(folded(x), model(x)) <= TOLERANCE.get(family, 1e-5)
            program = torch.export.export(folded, (x,))
        assert deviation(program.module()(x), model(x)) <= TOLERANCE.get(family, 1e-5)
        names[on] = {str(node.target).split(".")[-2:][0] for node in program.graph.nodes if node.op == "call_function"}
    assert ONE_FORM[family] in names[family != "restv2"] - names[family == "restv2"]
    assert not is_tracing_for_cpu()


@pytest.mark.parametrize("side", [64, 384])
@torch.no_grad()
def test_rest_attends_among_tokens_where_that_is_less_work(side: int) -> None:
    """By both ways the same; the second stage, of two heads, goes the shorter one."""
    model, folded = pair("rest")
    attn = cast(Any, folded.stages)[1][0].attn
    grid = (side // 8, side // 8)
    x = torch.randn(2, grid[0] * grid[1], 32, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    watch = attn.absorbed.register_forward_hook(lambda *_: calls.append(1))
    found = attn(x, grid)
    watch.remove()
    assert attn.saves(32, grid) == (side == 64) == bool(calls)
    assert deviation(attn.absorbed(x, grid), cast(Any, model.stage2)[0].attn(x, grid)) <= 3e-5
    assert deviation(found, cast(Any, model.stage2)[0].attn(x, grid)) <= 3e-5


def test_tables_are_remembered_for_a_few_grids_and_made_anew_for_other_weights() -> None:
    folded = fuse(stirred(build("deit")))
    positions = folded.positions
    for columns in range(1, KEPT_GRIDS + 3):
        folded(image(8, 8 * columns))
    assert [grid for grid, _, _ in positions.made] == [(1, columns) for columns in range(3, KEPT_GRIDS + 3)]
    first = positions((1, 5))
    assert positions((1, 5)) is first
    assert copy.deepcopy(folded).bfloat16().positions((1, 5)).dtype == torch.bfloat16
    other = fuse(stirred(build("deit", seed=1)))
    folded.load_state_dict(other.state_dict())
    assert torch.equal(folded.positions((1, 5)), other.positions((1, 5)))
    assert not torch.equal(folded.positions((1, 5)), first)


def test_refuses() -> None:
    folded = pair("deit")[1]
    assert not folded.eval().training
    with pytest.raises(UserError, match="train the model that it was made of"):
        folded.train()
    with pytest.raises(UserError, match="folded already"):
        fuse(folded)
    linear = nn.Linear(2, 2)
    copied = fuse(linear)
    assert copied is not linear
    assert torch.equal(copied.weight, linear.weight)
    with pytest.raises(UserError, match="at least one pixel, not 0x8"):
        fuse(build("deit"), size=(0, 8))


def counted(name: str) -> tuple[int, ...]:
    """Millions of multiply-accumulates and operations at 224 px, before and after; weights do not matter."""
    with torch.device("meta"):
        model = create_model(name)
    model = model.to_empty(device="cpu").eval()
    folded, x = fuse(model, size=224), torch.zeros(1, 3, 224, 224)
    cost = [round(macs(m, Size(224, 224)) / 1e6) for m in (model, folded)]
    return *cost, operations(model, x), operations(folded, x)


def test_parallel_blocks_become_plain_ones() -> None:
    x = image(64, 64, 1)
    assert operations(fuse(build("threethings"), size=64), x) == operations(fuse(build("deit3"), size=64), x)


def test_the_pages_table_counts_what_is_left() -> None:
    page = (ROOT / "docs" / "fold.md").read_text()
    rows = re.findall(r"^\| (\w+) \|.*" + r"\| (\d+) " * 4 + r"\|$", page, re.M)
    assert [name for name, *_ in rows] == [*SMALLEST.values()]
    for name, *numbers in rows:
        cost, cost_after, count, count_after = (int(number) for number in numbers)
        assert counted(name) == (cost, cost_after, count, count_after), name
        # ResTv2 trades operations for faster ones; the last block's shortcut is more, and far smaller ones.
        assert count_after < count or cost_after < cost or name == "restv2_tiny"
        assert count_after <= count + 3
        assert cost_after <= cost
