"""What an optional library is missing for is one line that names the command to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anyres.config import UserError, need
from tests.pictures import make_folder

OPTIONAL = ("pyarrow", "datasets", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "wandb", "mlflow", "pip")

WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from anyres.cli import main
for words in {commands!r}:
    sys.argv = ["anyres", *words]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code, file=sys.stderr)
    else:
        print("ended with 0", file=sys.stderr)
"""


def without(*commands: tuple[object, ...]) -> list[str]:
    """What each of some ``anyres`` commands says, and how it ends, in a process without optional libraries."""
    code = WITHOUT.format(blocked=OPTIONAL, commands=[[str(word) for word in words] for words in commands])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANYRES_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    return re.findall(r"(.*?ended with \S+)\n", done.stderr, flags=re.DOTALL)


def test_what_is_missing_is_one_line_and_training_and_its_curve_miss_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    shapes = make_folder(tmp_path / "shapes", per_class=5)
    values = ("model.dims=[8,16,32,64]", "model.depths=[1,1,1,1]", "views.sizes=[32,24]", "data.batch_size=4")
    values += ("train.epochs=1", "evaluate.sizes=[24,32]", "data.workers=0")

    def train(data: object, *more: str) -> tuple[object, ...]:
        return ("train", "restv2_nano", "--data", data, "--out", tmp_path / "run", *more)

    missing = {
        "data": [train(tmp_path / "a.parquet"), train("hf:me/pets"), train("groceries")],
        "trackers": [train(shapes, f"train.trackers=[{name}]") for name in ("wandb", "mlflow")],
    }
    commands = [(extra, command) for extra, each in missing.items() for command in each]
    *refused, trained = without(*(command for _, command in commands), train(shapes, *values))
    for (extra, _), said in zip(commands, refused, strict=True):
        line, end = said.splitlines()
        assert line.endswith(f"run pip install 'anyres[{extra}]'")
        assert end == "ended with 2"
    assert trained.endswith("ended with 0"), trained
    assert (tmp_path / "run" / "report.html").exists()


def test_need_passes_through_what_goes_wrong_within_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import of_which_this_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="of_which_this_is_missing"):
        need("half_installed", extra="data")
    with pytest.raises(UserError, match=r"reading needs absent_library, which .*: run pip install 'anyres\[data\]'"):
        need("absent_library.part", extra="data", purpose="reading")
    assert need("json", extra="data").dumps(1) == "1"
