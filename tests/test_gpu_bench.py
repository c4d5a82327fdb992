"""benchmarks/gpu.py refuses where there is no GPU; its measurements, which take a device, run here on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from anyres.flow import has_bf16
from anyres.ops.kernels import OPERATIONS

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_written(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
    assert gpu.main() == 2
    assert capsys.readouterr().err == "not measured: no CUDA device here\n"
    assert not out.exists()


@pytest.mark.skipif(not has_bf16(CPU), reason="this processor has no bf16")
def test_throughput_and_step_on_a_cpu(gpu: ModuleType) -> None:
    clock = gpu.Clock(CPU, rounds=2, seconds=0.0, side=64)
    asked = dict(gpu.questions(("throughput", "step"), ("restv2_nano",), (32,), 4, clock, compiled=False))
    assert list(asked) == ["throughput restv2_nano 32", "step restv2_nano 32"]
    for ask, batch in zip(asked.values(), (4, 2), strict=True):
        facts = ask()
        assert facts["batch"] == batch
        assert facts["theirs"] == "plain eager"
        assert len(facts["failed"]) == 1  # the kernels, and why
        assert 0 < facts["low"] <= facts["ratio"] <= facts["high"]
        assert all(value > 0 for value in facts["share of the matrix rate"].values())
        json.dumps(facts)


def test_cases_of_the_kernels_are_whole(gpu: ModuleType) -> None:
    """On no device: shapes alone."""
    cases = gpu.kernel_cases(torch.device("meta"), 256)
    for images, make in cases.values():
        name, plain, inputs = make(images)
        assert plain.__name__ == name
        out = plain(*inputs)
        assert (out[0] if isinstance(out, tuple) else out).shape[0] == images
    assert {make(1)[0] for _, make in cases.values()} == set(OPERATIONS)
