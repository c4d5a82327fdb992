"""The commands of docs/scale.md: run where this machine can, else parsed by those who would run them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command import parse
from tests.conftest import TinyRun
from tests.test_docs import blocks

PAGE = {block.kind: block.text for block in blocks(Path("docs/scale.md")) if block.kind in ("sbatch", "yaml")}
LINES = [line for b in blocks(Path("docs/scale.md")) if b.kind == "bash" for line in b.text.splitlines()]


def understood(words: list[str]) -> tuple[int, int]:
    """(machines, processes on each) of a torchrun command, which trains."""
    from torch.distributed.run import parse_args

    assert words[0] == "torchrun"
    options = parse_args(words[1:])
    assert options.module
    assert parse(shlex.join([options.training_script, *options.training_script_args])) == "train"
    if options.nnodes != "1:1":
        assert options.rdzv_backend == "c10d"
        assert options.rdzv_endpoint.endswith(":29400")
    return int(options.nnodes.split(":")[-1]), int(options.nproc_per_node)


def test_eight() -> None:
    (line,) = [line for line in LINES if line.startswith("torchrun")]
    assert understood(shlex.split(line)) == (1, 8)


def test_slurm(tmp_path: Path) -> None:
    """The script, with commands in the place of Slurm's that show what would be done."""
    for name, does in {"srun": 'printf "%s\\n" "$@"', "scontrol": "printf 'node07\\nnode08\\n'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    place = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    slurm = {"SLURM_JOB_NODELIST": "node[07-08]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "4711"}
    script = tmp_path / "scale.sh"
    script.write_text(PAGE["sbatch"])
    words = subprocess.check_output(["bash", "-eu", script], text=True, env=place | slurm).splitlines()
    assert understood(words) == (2, 8)
    assert {"node07:29400", "4711"} <= set(words)


def test_kubernetes() -> None:
    service, job = yaml.safe_load_all(PAGE["yaml"])
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert understood(container["command"]) == (
        job["spec"]["completions"],
        container["resources"]["limits"]["nvidia.com/gpu"],
    )
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}:29400" in container["command"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


@pytest.mark.timeout(600)
def test_accelerate_launches_it(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The page's own line, with two processes, a smaller model and our images."""
    (line,) = [line for line in LINES if line.startswith("accelerate")]
    assert parse(line) == "train"
    (tmp_path / "root").symlink_to(tiny_run.data)
    line = line.replace(" 8 ", " 2 ").replace("restv2/tiny_224", "restv2_nano")
    values = "views.sizes=[32] data.batch_size=8 data.workers=0 train.epochs=1 evaluate.sizes=[32]"
    words = [str(Path(sys.executable).with_name("accelerate")), *shlex.split(f"{line} {values}")[1:]]
    done = subprocess.run(
        words, cwd=tmp_path, text=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on 2 x " in done.stderr
    assert (tmp_path / "runs/eight/report.html").exists()
