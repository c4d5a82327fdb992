"""What is installed works: the wheel in an empty environment, and the lowest versions that pyproject.toml allows.

`make packaging` runs these; `make test` leaves them out, since they fetch a second PyTorch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pictures import make_folder

ROOT = Path(__file__).parents[1]
UV = (sys.executable, "-m", "uv")
PLAIN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
ENVIRONMENT = {**PLAIN, "OMP_NUM_THREADS": "1", "UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "1"}

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(1200)]

SMOKE = """
import sys
import anyres, torch
assert torch.__version__.startswith({torch!r}), torch.__version__
assert anyres.create_model("restv2_nano", 3)(torch.randn(1, 3, 48, 64)).shape == (1, 3)
sys.argv = ["anyres", *{words!r}]
from anyres.cli import main
main()
"""


def run(*words: object, cwd: Path = ROOT) -> str:
    """What a command says. Raises AssertionError when it fails."""
    command = [str(word) for word in words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def environment(folder: Path, *python: str) -> Path:
    """An empty virtual environment; returns its interpreter. ``python``: versions to prefer, if they are here."""
    for version in (*python, sys.executable):
        command = [*UV, "venv", "--quiet", "--clear", "--python", version, str(folder)]
        if subprocess.run(command, check=False, capture_output=True, env=ENVIRONMENT).returncode == 0:
            return folder / "bin" / "python"
    raise AssertionError("uv makes no environment")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(*UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.mark.builtin
def test_the_wheel_makes_the_demos_first_steps(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    run(*UV, "pip", "install", "--quiet", "--python", python, "-c", ROOT / "requirements.lock", f"{wheel}[data]")
    where = run(python, "-c", "import anyres; print(anyres.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        words = [str(python.with_name("anyres")), "demo", "--out", str(tmp_path / "demo")]
        demo = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=file, stderr=file)
    deadline = time.monotonic() + 600
    while not any('"step": 20' in file.read_text() for file in (tmp_path / "demo").glob("*/metrics.jsonl")):
        assert demo.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.2)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(120) == 143, said.read_text()
    assert list((tmp_path / "demo").glob("*/step_*"))


def test_the_lowest_versions_train_and_draw_a_curve(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", "3.12")
    version = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    options = ["--resolution", "lowest-direct", "--only-binary", ":all:", "--python-version", version, "--quiet"]
    pinned = tmp_path / "lowest.txt"
    run(*UV, "pip", "compile", *options, "--extra", "data", ROOT / "pyproject.toml", "-o", pinned)
    run(*UV, "pip", "install", "--quiet", "--python", python, "-r", pinned)
    run(*UV, "pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    torch = next(line for line in pinned.read_text().splitlines() if line.startswith("torch==")).removeprefix("torch==")
    data, out = make_folder(tmp_path / "shapes", per_class=8), tmp_path / "run"
    values = ("views.sizes=[32,24]", "data.batch_size=6", "train.epochs=1", "evaluate.sizes=[24,32]", "data.workers=0")
    words = ["train", "restv2_nano", "--data", str(data), "--out", str(out), *values]
    run(python, "-c", SMOKE.format(torch=torch, words=words), cwd=tmp_path)
    assert (out / "curve.csv").read_text().count("\n") == 3
