"""A machine that is shared: quotas of control groups, busy neighbors, and the number of threads in a run's state."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from anyres.config import Stopped
from anyres.ops.processors import affinity, cpu_quota, prepare_threads, processors
from anyres.runs.train import train_run
from anyres.training import checkpoint, loop, step, threads
from anyres.training.state import Progress
from tests.faults.small import at_step, small
from tests.pictures import make_folder
from tests.runs import differences


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "shapes", per_class=3)


class Machine:
    """The files by which Linux tells of control groups, under ``root``; ``version`` 1 or 2."""

    def __init__(self, root: Path, version: int, group: str, seen_root: str = "/") -> None:
        self.version, self.mount = version, root / "sys fs"
        mine = root / "proc" / "self"
        mine.mkdir(parents=True)
        (mine / "cgroup").write_text(f"0::{group}\n" if version == 2 else f"9:name=systemd:/\n3:cpu,cpuacct:{group}\n")
        kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
        mount = str(self.mount).replace(" ", "\\040")
        lines = ["22 1 0:4 / /proc rw shared:1 - proc proc rw", f"30 23 0:27 {seen_root} {mount} rw,nosuid - {kind}"]
        (mine / "mountinfo").write_text("\n".join(lines) + "\n")
        self.proc = root / "proc"

    def limit(self, group: str, quota: object, period: int = 100_000) -> None:
        folder = self.mount / group
        folder.mkdir(parents=True, exist_ok=True)
        if self.version == 2:
            (folder / "cpu.max").write_text(f"{quota} {period}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{-1 if quota == 'max' else quota}\n")
            (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_quota_of_a_group_and_those_around_it(tmp_path: Path, version: int) -> None:
    machine = Machine(tmp_path, version, "/kubepods/pod/one")
    assert cpu_quota(machine.proc) is None
    machine.limit("kubepods/pod/one", "max")
    assert (cpu_quota(machine.proc), processors(machine.proc)) == (None, affinity())
    machine.limit("kubepods", 400_000)
    assert cpu_quota(machine.proc) == 4.0
    machine.limit("kubepods/pod", 75_000, 50_000)
    assert (cpu_quota(machine.proc), processors(machine.proc)) == (1.5, 1)
    machine.limit("kubepods/pod/one", 20_000)
    assert (cpu_quota(machine.proc), processors(machine.proc)) == (0.2, 1)
    (machine.mount / "kubepods/pod/one" / ("cpu.max" if version == 2 else "cpu.cfs_quota_us")).write_text("what")
    assert cpu_quota(machine.proc) == 1.5


def test_a_group_as_a_container_sees_it(tmp_path: Path) -> None:
    """What is mounted is the container's own group, and its path is told as the host sees it."""
    machine = Machine(tmp_path, 1, "/docker/abc", seen_root="/docker/abc")
    machine.limit(".", 100_000)
    assert processors(machine.proc) == 1
    assert processors(tmp_path / "none") == affinity()


def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    prepare_threads()
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"]) == ("7", "0")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare_threads()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("slow", "taken"), [({2: 0.02, 1: 0.01}, 1), ({2: 0.01, 1: 0.011}, 2), ({2: 0.011, 1: 0.01}, 2)]
)
def test_fewer_threads_are_taken_where_they_are_plainly_faster(slow: dict[int, float], taken: int) -> None:
    before, numbers, progress = torch.get_num_threads(), [2, 1], Progress()
    try:
        threads.choose(progress, numbers, lambda: time.sleep(slow[torch.get_num_threads()]))
        assert (progress.threads, torch.get_num_threads(), numbers) == (taken, taken, [])
    finally:
        torch.set_num_threads(before)


def test_a_rehearsal_leaves_no_trace(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropped blocks, a moving average and mixed images."""
    values = ("model.drop_path=0.3", "mix.mixup=0.8", "train.eval_every=0", "train.epochs=1", "train.threads=1")
    train_run(small(data, *values), tmp_path / "plain", report=False)
    rehearsed: list[int] = []

    @contextmanager
    def to_be_chosen(_: object, progress: Progress, wanted: int) -> Iterator[list[int]]:
        progress.threads = wanted
        yield [wanted]

    def counted(*given: Any) -> None:
        rehearsed.append(given[3].progress.step)
        step.rehearse(*given)

    monkeypatch.setattr(loop, "run_threads", to_be_chosen)
    monkeypatch.setattr(loop, "rehearse", counted)
    before = torch.get_num_threads()
    train_run(small(data, *values), tmp_path / "rehearsed", report=False)
    torch.set_num_threads(before)
    assert rehearsed == [0] * (threads.ROUNDS + 1)
    assert not differences(tmp_path / "plain", tmp_path / "rehearsed")


def test_a_resumed_run_keeps_its_threads(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise Stopped("enough")

    seen: list[int] = []
    before = torch.get_num_threads()
    values = ("train.eval_every=0", "train.epochs=1")
    with monkeypatch.context() as patch:
        at_step(patch, 1, stop)
        with pytest.raises(Stopped):
            train_run(small(data, *values, f"train.threads={before + 1}"), tmp_path / "run", report=False)
    newest = checkpoint.found(tmp_path / "run")[0]
    assert json.loads((newest / "state.json").read_text())["progress"]["threads"] == before + 1
    at_step(monkeypatch, 2, lambda: seen.append(torch.get_num_threads()))
    train_run(small(data, *values), tmp_path / "run", report=False)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
