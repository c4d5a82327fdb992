"""What is installed works: the wheel in an empty environment, the lowest versions that pyproject.toml allows, and the
containers' commands without a container.

`make packaging` runs these; `make test` leaves them out, since they fetch a second PyTorch.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.pictures import draw, make_folder
from tests.runs import free_port

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


def container(name: str, folder: Path) -> tuple[list[str], dict[str, str], str]:
    """What ``docker/NAME.Dockerfile`` starts, with its environment, and its health check; installed as it says, from
    the files that it copies, into an environment in ``folder`` in place of the system's."""
    text = (ROOT / "docker" / f"{name}.Dockerfile").read_text().replace("\\\n", " ")
    said = {word: re.findall(rf"^{word} (.+)$", text, re.M) for word in ("COPY", "ENV", "ENTRYPOINT", "CMD")}
    app = folder / "app"
    app.mkdir(parents=True)
    for line in said["COPY"]:
        for source in line.split()[:-1]:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, app / source)
            else:
                shutil.copy(ROOT / source, app)
    (install,) = re.findall(r"&& uv (pip install .+?) +&&", text)
    words = [word for word in shlex.split(install) if word not in ("--system", "--no-cache")]
    python = environment(folder / "venv", "3.12")
    run(*UV, *words, "--quiet", "--python", python, cwd=app)
    values = dict(word.split("=", 1) for line in said["ENV"] for word in shlex.split(line))
    places = {value: str(folder / value.strip("/").replace("/", "-")) for value in values.values() if value[0] == "/"}
    command = json.loads(said["ENTRYPOINT"][0]) + json.loads(said["CMD"][0])
    set_here = {name: places.get(value, value) for name, value in values.items()}
    path = f"{python.parent}:{os.environ['PATH']}"
    health = re.findall(r"HEALTHCHECK.+?CMD (\[.+\])$", text, re.M)
    return command, {**ENVIRONMENT, **set_here, "PATH": path}, health[0] if health else ""


def test_the_containers_commands_run_bare(tmp_path: Path) -> None:
    """The training image trains and says what it has; the serving image serves that run behind a token, is healthy,
    and ends in order."""
    doctor, values, _ = container("train", tmp_path / "train")
    done = subprocess.run(doctor, check=False, capture_output=True, text=True, env=values, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    data, out = make_folder(tmp_path / "shapes", per_class=8), tmp_path / "run"
    how = ("views.sizes=[32,24]", "data.batch_size=6", "train.epochs=1", "evaluate.sizes=[24,32]", "data.workers=0")
    words = [doctor[0], "train", "restv2_nano", "--data", str(data), "--out", str(out), *how]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=values, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr

    command, values, health = container("serve", tmp_path / "serve")
    port = str(free_port())
    here = {"/run": str(out), "0.0.0.0": "127.0.0.1", "8000": port}
    command = [here.get(word, word) for word in command]
    token = "a-token-for-this-test-alone"
    served = subprocess.Popen(
        command, env={**values, "ANYRES_TOKEN": token}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        check = [word.replace("8000", port) for word in json.loads(health)]
        end = time.monotonic() + 120
        while subprocess.run(check, check=False, capture_output=True, env=values).returncode:
            assert served.poll() is None, served.communicate()
            assert time.monotonic() < end, "it does not become healthy"
            time.sleep(0.5)
        picture = tmp_path / "one.png"
        draw(0, 1).save(picture)
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/predict?size=32", picture.read_bytes())
        asked.add_header("Content-Type", "image/png")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asked, timeout=20)
        asked.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert len(json.loads(answer.read())["predictions"]) == 3
        served.send_signal(signal.SIGTERM)
        _, errors = served.communicate(timeout=60)
        assert served.returncode == 143, errors
        assert "everything that was accepted has been answered" in errors
    finally:
        served.kill()
        served.wait()
