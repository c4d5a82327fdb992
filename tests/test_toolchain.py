"""PyTorch's tools on every family: benchmarks/toolchain.py passes on small models, and says so where one is broken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from anyres.models.registry import variant
from tests.models.zoo import SMALL, SMALLEST
from tests.test_docs import ROOT, blocks

SCRIPT = ROOT / "benchmarks" / "toolchain.py"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toolchain", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


toolchain = load_script()
CHECKS = [name for name in toolchain.CHECKS if name != "onnx" or has_onnx]


VARIANTS = ("vit_tiny", "deit_tiny", "deit3_tiny", "deit_tiny_distilled", "deit_small_patch16_18x2")
VARIANTS += ("deit3_tiny, hMLP stem", "S60_multi")
CHEAP = [name for name in CHECKS if name not in ("onnx", "compile", "compile_training")]

GROUPS = [  # each slow tool meets a family or two here: docs/export.md's table has them all
    (("rest_lite", "resformer_tiny"), [*CHEAP, "compile_training"]),
    (("restv2_tiny", "cait_xxs24_224"), [*CHEAP, "compile"]),
    (("S60",), CHECKS),
    (("resmlp_12", *VARIANTS), CHEAP),
]


# In a process of its own, as the types that are checked under test refuse a size that is free.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("models", "checks"), GROUPS, ids=[models[0] for models, _ in GROUPS])
def test_every_check_passes(models: tuple[str, ...], checks: list[str], tmp_path: Path) -> None:
    out = tmp_path / "toolchain.json"
    command = [sys.executable, SCRIPT, "--quick", "--models", *models, "--checks", *checks, "--out", out]
    answer = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(out.read_text())["models"]
    assert sorted(found) == sorted(models)
    for model, results in found.items():
        assert sorted(results) == sorted(checks)
        assert not {check: result for check, result in results.items() if not result["ok"]}, model
        least = 33 if model in ("rest_lite", "restv2_tiny") else 17
        assert results["export"]["least_height"] == results["export"]["least_width"] == least
        assert results["export"]["refusal"].startswith("AssertionError: Guard failed: ")
        assert results["export"]["deviation"] <= 1e-5
        assert "compile" not in checks or results["compile"]["graphs"] == 2
        assert 0 < results["bf16"]["deviation"] <= (0.3 if model == "rest_lite" else 0.06)


def test_every_family_is_there() -> None:
    assert sorted(model for group, _ in GROUPS for model in group) == sorted(toolchain.CASES)
    tidy = {variant(case.name).name for case in toolchain.CASES.values()}
    assert {variant(name).name for name in SMALLEST.values()} <= tidy
    assert {small.name for family, small in SMALL.items() if family not in ("restv2", "resformer", "resmlp")} <= tidy


class Faulty(nn.Module):
    """Takes part in everything, and then does one thing wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.linear(x.mean((2, 3)))
        if self.fault == "branch" and pooled.sum() > 0:
            return pooled + 1
        if self.fault == "forgetful" and torch.compiler.is_exporting():
            return pooled + 1
        if self.fault == "overflow":
            return pooled * 1e5 + 1e6
        if self.fault == "random":
            return pooled + torch.rand(4)
        return pooled

    def init_weights(self) -> None:
        nn.init.zeros_(self.linear.weight)  # and the bias is left as it is


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("check", "fault", "words"),
    [
        ("export", "branch", "data-dependent"),
        ("export", "forgetful", "deviates by"),
        ("compile", "branch", "Unsupported: Data-dependent branching"),
        ("fp16", "overflow", "deviates by inf"),
        ("channels_last", "random", "deviates by"),
        ("copy", "random", "deviates by"),
        ("meta", "", "init_weights left linear.bias"),
    ],
)
def test_a_broken_model_fails(check: str, fault: str, words: str) -> None:
    def make(**_: object) -> nn.Module:
        torch.manual_seed(0)
        return Faulty(fault)

    result = toolchain.run_check(check, make, quick=True)
    assert not result["ok"]
    assert words in result["error"]
    assert "\n" not in result["error"]


def test_checkpointing_that_recomputes_nothing_fails() -> None:
    make = toolchain.maker(toolchain.CASES["deit_tiny"], quick=True)

    def idle(**options: object) -> nn.Module:
        model = make(**options)
        model.set_grad_checkpointing = lambda enable: None
        return model

    assert toolchain.run_check("checkpointing", make, quick=True)["ok"]
    result = toolchain.run_check("checkpointing", idle, quick=True)
    assert result == {"ok": False, "error": "AssertionError: blocks ran 2 times, not twice 2"}


def test_checks_of_two_runs_are_kept_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other models and other checks stay; what was measured with another PyTorch does not."""
    out = tmp_path / "toolchain.json"
    out.write_text(json.dumps({"torch": torch.__version__, "quick": True, "models": {"S60": {"bf16": {"ok": True}}}}))
    words = ["toolchain.py", "--quick", "--models", "deit_tiny", "--checks", "copy", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    toolchain.main()
    found = json.loads(out.read_text())["models"]
    assert found == {"deit_tiny": {"copy": {"ok": True, "deviation": 0.0}}, "S60": {"bf16": {"ok": True}}}
    out.write_text(json.dumps({"torch": "1.0", "quick": True, "models": found}))
    toolchain.main()
    assert list(json.loads(out.read_text())["models"]) == ["deit_tiny"]


def test_the_pages_snippets_run(tmp_path: Path) -> None:
    python = [block.text for block in blocks(Path("docs/export.md")) if block.kind == "python"]
    snippets = [text for text in python if "mine.onnx" not in text]  # which test_export.py asks
    absent = ["onnx"] * (not has_onnx) + ["torch.compile"] * (not shutil.which("c++"))
    code = "\n".join(text for text in snippets if not any(word in text for word in absent))
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, env=ONE_THREAD, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert len(snippets) == 4


def test_the_pages_table_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "toolchain.json").read_text())
    assert not measured["quick"]
    assert list(measured["models"]) == list(toolchain.CASES)
    for model, results in measured["models"].items():  # compiling S60_multi takes too long here: S60 stands for it
        left = {"compile", "compile_training"} if model == "S60_multi" else set()
        assert set(results) == set(toolchain.CHECKS) - left, model
    assert all(result["ok"] for results in measured["models"].values() for result in results.values())
    assert toolchain.markdown(measured["models"]) in (ROOT / "docs" / "export.md").read_text()
