"""The kernels in Triton's interpreter (``interpreted.py``), and how a model is given them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anyres.config import UserError
from anyres.deploy.fuse import fuse
from anyres.ops.kernels import check_triton, kernel_operations, triton_here
from tests.command import anyres
from tests.models.zoo import build

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not triton_here(), reason="triton is not installed here")

PARTS = {
    "cait": {"talking_heads", "add_norm"},
    "rest": {"normed_heads", "add_norm"},
    "restv2": {"attend_plus", "add_norm"},
    "resmlp": set(),
    "deit3": {"add_norm"},
}


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    """In a process of its own: the interpreter is chosen when triton is first imported."""
    words = [sys.executable, "-m", "pytest", "-n", "0", "--noconftest", str(HERE / "interpreted.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@needs_triton
def test_anyres_starts_without_triton_and_off_cuda_a_kernel_is_its_plain_form() -> None:
    """In a process of its own, as triton may be imported already, and its functions confuse the checker of annotations.

    Without triton: as on macOS and Windows.
    """
    code = """
import sys
sys.modules["triton"] = None
import torch
import anyres
from anyres.deploy.fuse import fuse
from anyres.ops.kernels import kernel_for
from anyres.ops.triton_switch import triton_kernels
from tests.models.zoo import build, stirred
models = {family: stirred(build(family)).eval() for family in ("cait", "rest", "restv2", "resmlp", "deit3")}
assert not [name for name in sys.modules if name == "anyres.ops.triton"]
del sys.modules["triton"]
for family, model in models.items():
    x = torch.randn(2, 3, 64, 48)
    for form in (model, fuse(model)):
        with torch.no_grad():
            plain = form(x)
            with triton_kernels():
                assert kernel_for("add_norm").__module__ == "anyres.ops.triton.residual"
                assert torch.equal(form(x), plain), family
        assert kernel_for("add_norm") is None
with triton_kernels(False):
    assert kernel_for("add_norm") is None
with triton_kernels():
    with triton_kernels():
        pass
    assert kernel_for("add_norm") is not None
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("family", PARTS)
@pytest.mark.parametrize("folded", [False, True])
def test_which_parts_have_kernels(family: str, folded: bool) -> None:
    model = build(family)
    form = fuse(model) if folded else model
    assert kernel_operations(form, (64, 48), torch.device("cpu")) == PARTS[family]
    assert model.training


def test_refusals_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^Triton's kernels need a CUDA device, here it is cpu$"):
        check_triton(torch.device("cpu"))
    monkeypatch.setattr("anyres.ops.kernels.triton_here", lambda: False)
    with pytest.raises(UserError, match=r"^Triton's kernels need the package triton, which is not installed$"):
        check_triton(torch.device("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_training_with_kernels_is_refused_before_it_begins(tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = anyres("train", "restv2_nano", "--data", str(tmp_path), "--out", str(out), "train.kernels=triton")
    said = "train.kernels=triton: Triton's kernels need a CUDA device, here it is cpu; set train.kernels=plain"
    assert answer.code == 2
    assert said in " ".join(answer.err.split())
    assert not out.exists()
    answer = anyres("train", "restv2_nano", "--data", str(tmp_path), "--out", str(out), "train.kernels=cuda")
    assert answer.code == 2
    assert "train.kernels" in answer.err
