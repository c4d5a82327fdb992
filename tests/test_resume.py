"""A run that was killed continues as if nothing had happened, bit for bit.

In a short form; ``benchmarks/resume.py`` does more of it under torchrun, on two hosts too.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.pictures import make_folder
from tests.runs import STEPS, Run, differences, recorded


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=14)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone, its images loaded by the training process itself."""
    run = Run(data, tmp_path_factory.mktemp("runs") / "whole", "data.workers=0").start()
    run.wait()
    assert recorded(run.out) == STEPS
    return run.out


def cuts() -> list[int]:
    """Three steps to be killed at, one in each third but for its first steps."""
    return [random.SystemRandom().randint(first + 4, first + STEPS // 3 - 2) for first in range(0, STEPS, STEPS // 3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_steps(data: Path, whole: Path, tmp_path: Path, workers: int) -> None:
    run = Run(data, tmp_path / "cut", f"data.workers={workers}")
    killed = cuts()
    for step in killed:
        run.start().reach(step).kill()
    assert "continuing from step" in run.start().wait()
    assert not differences(whole, run.out), f"killed at {killed}"


def test_two_processes_of_which_one_is_killed(data: Path, tmp_path: Path) -> None:
    uncut, run = (Run(data, tmp_path / name, "data.workers=0", processes=2) for name in ("uncut", "cut"))
    uncut.start().wait()
    step = random.SystemRandom().randint(5, STEPS - 5)
    run.start().reach(step).send(signal.SIGKILL, rank=step % 2)
    for process in run.processes:  # the other one cannot go on
        process.join(60)
        assert process.exitcode not in (0, None)
    assert "continuing from step" in run.start().wait()
    assert not differences(uncut.out, run.out), f"killed at {step}"


def test_stopped_by_a_signal(data: Path, whole: Path, tmp_path: Path) -> None:
    values = ("train.checkpoint_every=1000", "data.workers=0")
    run = Run(data, tmp_path / "stopped", *values)
    for number, step, code in ((signal.SIGINT, 7, 130), (signal.SIGTERM, 33, 143)):
        run.start().reach(step).send(number)
        said = run.wait(code)
        assert "the same command continues from there" in said
        assert "Traceback" not in said
    assert "continuing from step" in run.start().wait()
    assert not differences(whole, run.out)
    assert "is done" in run.start().wait()
    said = Run(data, run.out, *values, "optim.lr=0.5").start().wait(2)
    assert said.strip().count("\n") == 0
    assert "optim.lr" in said
