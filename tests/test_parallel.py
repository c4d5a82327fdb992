"""Two processes train the longer demo's recipe (smaller views and images) as one does with the same batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import TinyRun
from tests.runs import Run

STEPS = 20
CHANGES = ("views.sizes=[64,48,40,32]", "data.batch_size=8", "train.epochs=5", "train.precision=fp32")
CHANGES += ("train.log_every=1", "train.eval_every=0", "data.workers=0", "evaluate.sizes=[64]")


def losses(data: Path, out: Path, processes: int) -> list[float]:
    Run(data, out, *CHANGES, processes=processes, words=("train", "demo/full_any_size")).start().wait()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.timeout(600)
def test_two_processes_match_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    one, two = (losses(tiny_run.data, tmp_path / str(count), count) for count in (1, 2))
    assert len(one) == len(two) >= STEPS
    assert one[:STEPS] == pytest.approx(two[:STEPS], rel=2e-3)
    assert one[:3] == pytest.approx(two[:3], rel=1e-5)
