"""A run that was killed continues as if nothing had happened, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pictures import make_folder

STEPS = 20
RECIPE = [
    "views.sizes=[48, 32]",
    "data.batch_size=8",
    "data.repeats=3",
    "augment.erasing=0.5",
    "mix.mixup=0.8",
    "mix.cutmix=1.0",
    "mix.smoothing=0.1",
    "model.drop_path=0.2",
    "train.epochs=5",
    "train.eval_every=2",
    "train.log_every=1",
    "train.checkpoint_every=3",
    "evaluate.sizes=[32]",
]


def start(data: Path, out: Path, *changes: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "anyres", "train", "restv2_nano", "--data", str(data), "--out", str(out)]
    return subprocess.Popen(
        [*command, *RECIPE, *changes],
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the run has recorded ``step`` of its steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count('"loss"') >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was never reached: {process.communicate()[1]}")


def finish(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    data = make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=14)
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(data, out))
    return data, out


def same(a: Path, b: Path) -> None:
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    assert lines[0] == lines[1]
    assert len([line for line in lines[0] if "loss" in line]) == STEPS


@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_a_random_step(uninterrupted: tuple[Path, Path], tmp_path: Path, attempt: int) -> None:
    data, whole = uninterrupted
    step = random.SystemRandom().randint(4 + 5 * attempt, 8 + 5 * attempt)
    out = tmp_path / "cut"
    process = start(data, out, f"data.workers={2 * (attempt % 2)}")
    wait_for(out, step, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "model.safetensors").exists()
    said = finish(start(data, out, f"data.workers={2 * (attempt % 2)}"))
    assert "continuing from step" in said, f"killed after step {step}"
    same(whole, out)


def test_interrupted_by_the_keyboard(uninterrupted: tuple[Path, Path], tmp_path: Path) -> None:
    data, whole = uninterrupted
    out = tmp_path / "stopped"
    process = start(data, out, "train.checkpoint_every=1000")
    wait_for(out, 7, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "the same command continues from there" in said
    assert "Traceback" not in said
    assert "continuing from step" in finish(start(data, out, "train.checkpoint_every=1000"))
    same(whole, out)
    again = start(data, out, "train.checkpoint_every=1000")
    assert "is done" in finish(again)
    other = start(data, out, "train.checkpoint_every=1000", "optim.lr=0.5")
    said = other.communicate(timeout=60)[1]
    assert other.returncode == 2
    assert said.strip().count("\n") == 0
    assert "optim.lr" in said
