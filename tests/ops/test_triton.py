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
from anyres.ops.kernels import PLAIN, check_triton, triton_here
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
import copy, sys
sys.modules["triton"] = None
import torch
import anyres
from anyres.deploy.fuse import fuse
from anyres.ops.kernels import use_triton
from tests.models.zoo import build, stirred
models = {family: stirred(build(family)).eval() for family in ("cait", "rest", "restv2", "resmlp", "deit3")}
assert not [name for name in sys.modules if name.startswith("anyres.ops.triton")]
del sys.modules["triton"]
for family, plain in models.items():
    fast, x = copy.deepcopy(plain), torch.randn(2, 3, 64, 48)
    assert bool(use_triton(fast)) == (family != "resmlp")
    assert use_triton(copy.deepcopy(fast)) == 0  # copied with the model, and in place already
    folded = fuse(plain)
    twin = copy.deepcopy(folded)
    assert bool(use_triton(twin)) == (family != "resmlp")
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x)), family
        assert torch.equal(twin(x), folded(x)), family
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("family", PARTS)
@pytest.mark.parametrize("folded", [False, True])
def test_which_parts_have_kernels(family: str, folded: bool) -> None:
    model = build(family)
    modules = (fuse(model) if folded else model).modules()
    held = [value for module in modules for value in vars(module).values()]
    assert {plain.__name__ for plain in PLAIN for value in held if value is plain} == PARTS[family]


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
