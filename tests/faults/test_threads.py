"""Predictors in threads: many calls of one, many made at once, one made while others answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx import graph_module

from anyres.deploy.fuse.tracing import is_tracing_for_cpu, tracing_for_cpu
from anyres.deploy.predictor import Predictor
from anyres.models.contract import Backbone
from tests.models.zoo import build, stirred

THREADS = 8
PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def _one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Backbone:
    return stirred(build("resmlp", classes=5))


def in_threads(work: Callable[[int], bool], count: int) -> None:
    """``work(i)`` is true for all i < count, eight at a time; what it raises is raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(count)))


def right(answer: Tensor, truth: Tensor) -> bool:
    return torch.allclose(answer, truth, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "openvino"])
def test_one_predictor_answers_many_threads(model: Backbone, engine: str) -> None:
    truth = model(PIXELS)
    made = Predictor(model, engine, 32)
    in_threads(lambda i: right(made(PIXELS[i % 4 : i % 4 + 1]), truth[i % 4 : i % 4 + 1]), 200)


@torch.no_grad()
def test_sizes_are_built_while_others_answer(model: Backbone) -> None:
    """The exporter patches modules and says that everything is being compiled, to all threads."""
    sizes = (24, 32)
    pixels = {size: torch.randn(1, 3, size, size) for size in sizes}
    truth = {size: model(x) for size, x in pixels.items()}
    made = Predictor(model, "onnxruntime", 32, any_size=True)
    in_threads(lambda i: right(made(pixels[sizes[i % 2]]), truth[sizes[i % 2]]), 32)
    assert len(made.cache.made) == len(sizes)


@torch.no_grad()
def test_predictors_are_made_by_many_threads(model: Backbone) -> None:
    truth, eager = model(PIXELS[:1]), Predictor(model, "eager", 32)

    def work(i: int) -> bool:
        if i % 4:
            return all(right(eager(PIXELS[:1]), truth) for _ in range(20))
        return right(Predictor(model, ("onnxruntime", "openvino")[i // 4 % 2], 32)(PIXELS[:1]), truth)

    in_threads(work, 8)


def test_the_form_for_compilers_ends_with_the_last_thread_inside() -> None:
    """Two that overlap, the first to come being the first to go."""
    first, second = tracing_for_cpu(), tracing_for_cpu()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert is_tracing_for_cpu()
    second.__exit__(None, None, None)
    assert not is_tracing_for_cpu()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))


def test_engines_leave_no_source_text_behind() -> None:
    """Which torch would keep for every graph made: 0.6 MiB for each predictor of OpenVINO."""
    before = graph_module._loader.eval_cache.copy()
    for engine in ("openvino", "onnxruntime"):
        Predictor(build("resmlp", classes=5), f"{engine}:fp32", 32)
    assert graph_module._loader.eval_cache == before
