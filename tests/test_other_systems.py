"""No name that Windows or macOS lack is needed: what can be tried of them on Linux."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anyres.ops import processors
from anyres.training.clock import memory_gib
from tests.pictures import make_folder
from tests.runs import SERVER
from tests.windows import run


def test_a_run_where_python_has_what_it_has_on_windows(tmp_path: Path) -> None:
    data, out = make_folder(tmp_path / "shapes", per_class=4), tmp_path / "out"
    process = SERVER.Process(target=run, args=(str(data), str(out), tmp_path / "said.txt"))
    process.start()
    process.join(240)
    said = (tmp_path / "said.txt").read_text()
    assert process.exitcode == 0, said
    assert "Traceback" not in said
    assert "fault of anyres" not in said
    codes = [line.split()[1:] for line in said.splitlines() if line.startswith("code ")]
    assert codes == [*[["0", verb] for verb in ("train", "train", "predict", "export", "doctor")], ["2", "predict"]], (
        said
    )
    assert "is done" in said
    assert (out / "answers.csv").is_file()


def test_macos_counts_memory_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    here = memory_gib(torch.device("cpu"))
    monkeypatch.setattr(processors.sys, "platform", "darwin")
    assert processors.peak_memory() * 1024 == pytest.approx(here * 2**30, rel=0.2)
    assert processors.affinity() == os.cpu_count()
