"""Two processes under torchrun train the demo's recipe (smaller views and images) as one does with the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TinyRun

STEPS = 20


def losses(out: Path, data: Path, *launcher: str) -> list[float]:
    train = ["-m", "anyres", "train", "demo/any_size", "--data", str(data), "--out", str(out)]
    changes = ["views.sizes=[64,48,40,32]", "data.batch_size=8", "train.epochs=5", "train.precision=fp32"]
    changes += ["train.log_every=1", "train.eval_every=0", "data.workers=0", "evaluate.sizes=[64]"]
    done = subprocess.run(
        [*launcher, *train, *changes],
        text=True,
        capture_output=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.timeout(600)
def test_two_processes_match_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    one = losses(tmp_path / "one", tiny_run.data, sys.executable)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    two = losses(tmp_path / "two", tiny_run.data, *torchrun)
    assert len(one) == len(two) >= STEPS
    assert one[:STEPS] == pytest.approx(two[:STEPS], rel=2e-3)
    assert one[:3] == pytest.approx(two[:3], rel=1e-5)
