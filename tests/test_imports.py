"""What `anyres predict` imports for a run of ours: PyTorch, and little beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.conftest import TinyRun

TOO_SLOW = (
    "accelerate",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "openvino",
    "pandas",
    "scipy",
    "sympy",
    "timm",
    "torchvision",
)
"""Each takes a tenth of a second to several seconds."""
LEAST_SHARE = 0.5
"""Of the time of all imports, PyTorch's own: three fifths to three quarters where it was measured."""


def imports(said: str) -> Counter[str]:
    """What ``-X importtime`` says: microseconds of each library's own modules, those that PyTorch imports as torch."""
    rows = [
        (int(own), len(indent), name)
        for own, indent, name in re.findall(r"^import time: +(\d+) \| +\d+ \|( +)(\S+)", said, re.M)
    ]
    spent: Counter[str] = Counter()
    inside = 0  # the indent of the `import torch` that a module belongs to; the outermost comes after what it imports
    for own, indent, name in reversed(rows):
        if inside and indent <= inside:
            inside = 0
        if name == "torch" and not inside:
            inside = indent
        spent["torch" if inside else name.partition(".")[0]] += own
    return spent


def test_predict_imports_what_it_uses(tiny_run: TinyRun) -> None:
    photo = next(path for path in sorted(tiny_run.data.rglob("*")) if path.is_file())
    command = [sys.executable, "-X", "importtime", "-m", "anyres", "predict", str(tiny_run.folder), str(photo)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(tiny_run.folder).parent)
    assert done.returncode == 0, done.stderr[-2000:]
    spent = imports(done.stderr)
    most = ", ".join(f"{name} {share / 1e6:.2f} s" for name, share in spent.most_common(12))
    assert not [name for name in TOO_SLOW if name in spent], most
    assert spent["torch"] > LEAST_SHARE * spent.total(), most
