"""What OpenVINO would tell its makers stays here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing
multiprocessing.Process.start = lambda process: print("a report")  # each is sent by a process
{}
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [("from anyres.deploy.engines.openvino_no_telemetry import openvino", ""), ("import openvino", "a report\n")],
)
def test_nothing_is_reported(line: str, said: str, tmp_path: Path) -> None:
    """The second line shows that the first could fail."""
    known = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    words = [sys.executable, "-c", SCRIPT.format(line)]
    done = subprocess.run(words, env=known | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert done.stdout == said
    assert (tmp_path / "intel").exists() == bool(said)
