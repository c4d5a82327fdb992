"""One process at a time uses a run folder; another is told which one does, and a dead one leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anyres.config import UserError
from anyres.recipe import dump_recipe
from anyres.runs.opened import open_run
from anyres.runs.train import train_run
from anyres.training import checkpoint
from anyres.training.lock import LOCK, RunLock
from tests.command import refused
from tests.faults.small import SMALL, at_step, small
from tests.pictures import make_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from anyres.storage import atomic_write
with atomic_write(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
HOLD = """
import os, sys
from pathlib import Path
from anyres.training.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.take()
    loader = os.fork()  # which outlives its parent, as a loader does for seconds
    if loader == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder's lock; it ends when its stdin is closed."""
    words = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_second_is_told_who_is_first_and_a_killed_one_is_gone_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        with RunLock(tmp_path) as lock, pytest.raises(UserError, match=f"in use by process {other.pid} on '"):
            lock.take()
        other.kill()
        other.wait()
        with RunLock(tmp_path) as lock:
            lock.take()
            lock.take()
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_command_in_a_folder_in_use_changes_nothing(tmp_path: Path) -> None:
    data, run = make_folder(tmp_path / "shapes", per_class=3), tmp_path / "run"
    words = ("train", "restv2_nano", "--data", data, "--out", run, *SMALL)
    run.mkdir()
    with holder(run):
        assert f"{run} is in use by process" in refused(*words)
        assert [path.name for path in run.iterdir()] == [LOCK]
        (run / "recipe.yaml").write_text(dump_recipe(small(data)))
        assert f"{run} is in use by process" in refused(*words)
        assert f"{run} is in use by process" in refused(*words, "optim.lr=0.5")


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = make_folder(tmp_path / "shapes", per_class=3), tmp_path / "run"
    (run / ".step_000001.partial").mkdir(parents=True)
    (run / ".step_000001.partial" / "model.safetensors").write_bytes(b"cut")
    left = subprocess.run(
        [sys.executable, "-c", KILLED, run / "run.json"],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert left.returncode == -signal.SIGKILL
    assert len(list(run.glob(".run.json.*.partial"))) == 1
    seen: list[list[str]] = []
    at_step(monkeypatch, 1, lambda: seen.append(sorted(path.name for path in run.glob(".*"))))
    recipe = small(data, "train.epochs=1", "train.eval_every=0")
    train_run(recipe, run, report=False)
    assert seen == [[LOCK]]
    assert not list(run.glob(".*"))
    assert [folder.name for folder in checkpoint.found(run)] == ["step_000003"]
    for name in (LOCK, ".tmpab12Cd"):  # killed after the weights were written, before the end
        (run / name).write_bytes(b"")
    train_run(recipe, run, report=False)
    assert not list(run.glob(".*"))


def test_a_run_finds_its_images_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "shapes", per_class=3)
    monkeypatch.chdir(tmp_path)
    recipe = small(Path("shapes"), "train.epochs=1", "train.eval_every=0")
    train_run(recipe, Path("run"), report=False)
    train_run(small(Path("./shapes/../shapes/"), "train.epochs=1", "train.eval_every=0"), Path("run"), report=False)
    monkeypatch.chdir("/")
    assert len(open_run(tmp_path / "run").images()) > 0
