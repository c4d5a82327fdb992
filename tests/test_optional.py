"""What an optional library is missing for is one line that names the command to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyres.config import UserError, need
from tests.pictures import make_folder

WITHOUT = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = ["anyres", *{words!r}]
from anyres.cli import main
main()
"""


def without(blocked: tuple[str, ...], *words: object) -> subprocess.CompletedProcess[str]:
    """``anyres WORDS`` in a process in which these modules cannot be imported."""
    code = WITHOUT.format(blocked=blocked, words=[str(word) for word in words])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANYRES_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)


OPTIONAL = ("pyarrow", "datasets", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "wandb", "mlflow", "pip")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("train", "restv2_nano", "--data", "{here}/a.parquet"), "pip install 'anyres[data]'"),
        (("train", "restv2_nano", "--data", "hf:me/pets"), "pip install 'anyres[data]'"),
        (("train", "restv2_nano", "--data", "groceries"), "pip install 'anyres[data]'"),
        (("train", "restv2_nano", "--data", "{here}/shapes", "train.trackers=[wandb]"), "'anyres[trackers]'"),
        (("train", "restv2_nano", "--data", "{here}/shapes", "train.trackers=[mlflow]"), "'anyres[trackers]'"),
    ],
)
def test_a_missing_library_is_one_line(tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    make_folder(tmp_path / "shapes", per_class=5)
    done = without(OPTIONAL, *(word.format(here=tmp_path) for word in words), "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert line in done.stderr
    assert done.stderr.strip().count("\n") == 0, done.stderr


def test_training_and_its_curve_need_none_of_them(tmp_path: Path) -> None:
    make_folder(tmp_path / "shapes", per_class=5)
    values = ("model.dims=[8,16,32,64]", "model.depths=[1,1,1,1]", "views.sizes=[32,24]", "data.batch_size=4")
    values += ("train.epochs=1", "evaluate.sizes=[24,32]", "data.workers=0")
    words = ("train", "restv2_nano", "--data", tmp_path / "shapes", "--out", tmp_path / "run", *values)
    done = without(OPTIONAL, *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_need_passes_through_what_goes_wrong_within_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import of_which_this_is_missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="of_which_this_is_missing"):
        need("half_installed", extra="data")
    with pytest.raises(UserError, match=r"reading needs absent_library, which .*: run pip install 'anyres\[data\]'"):
        need("absent_library.part", extra="data", purpose="reading")
    assert need("json", extra="data").dumps(1) == "1"
