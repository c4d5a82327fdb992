"""What a training run keeps of its rate where it does not have the machine to itself.

    python benchmarks/busy.py [--steps 150] [--rounds 3]

Runs of restv2_nano at 64 px are timed in turn, round by round, by what ``run.json`` says (seconds of steps, without
start, evaluation and report):

- ``quiet``: as a user starts it
- ``spinning``: the same, its waiting OpenMP threads spinning as libgomp's do by themselves
- ``one thread``: with ``--threads 1``
- ``busy``: beside one process per processor that does nothing but count
- ``quota``: in a control group that allows one processor's time (v1 or v2, where one can be made; else bound to one
  processor, and the table says so)

Medians over the rounds, and the three ratios that must hold: busy at least 0.4 of quiet, quota at least 0.9 of one
thread, quiet at least 0.95 of spinning (a machine without neighbors loses nothing).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GROUPS = {
    "v1": (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "100000"),
    "v2": (Path("/sys/fs/cgroup"), "cpu.max", "100000 100000"),
}
SPIN = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}
ALL = f"train.threads={len(os.sched_getaffinity(0))}"


def make_images(root: Path) -> Path:
    """32 images of noise in two classes."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(root / name / f"{i:02d}.png")
    return root


@contextlib.contextmanager
def quota_of_one() -> Iterator[tuple[str, list[str]]]:
    """How one processor's time is given, and the words before a command that is to have no more."""
    for version, (root, name, value) in GROUPS.items():
        group = root / f"anyres_busy_{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(value)
            yield f"control group {version}", ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    yield "bound to one processor (no control group can be made)", ["taskset", "-c", "0"]


@contextlib.contextmanager
def neighbors() -> Iterator[None]:
    """One busy process per processor."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def rate(work: Path, steps: int, *values: str, before: Sequence[str] = (), **environment: str) -> tuple[float, int]:
    """Images per second of one run, and its threads."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder) / "run"
        words = ["train", "restv2_nano", "--data", str(work / "images"), "--out", str(out), "views.sizes=[64]"]
        words += ["evaluate.sizes=[64]", "data.batch_size=16", f"train.epochs={steps}", "train.eval_every=0"]
        words += ["data.cache_side=96", "data.val_share=0.5", "train.checkpoint_every=100000", *values]
        command = [*before, sys.executable, "-m", "anyres", *words]
        free = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
        done = subprocess.run(command, env=free | environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        facts = json.loads((out / "run.json").read_text())
        state = json.loads(next(out.glob("step_*/state.json")).read_text())
    return facts["images"] / facts["seconds"], state["progress"]["threads"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder, quota_of_one() as (how, limited):
        work = Path(folder)
        make_images(work / "images")

        def time(name: str, *values: str, before: Sequence[str] = (), **environment: str) -> None:
            found.setdefault(name, []).append(rate(work, asked.steps, *values, before=before, **environment))
            print(f"{name:15} {found[name][-1][0]:7.1f} images/s", file=sys.stderr)

        for _ in range(asked.rounds):
            time("quiet")
            time("spinning", ALL, **SPIN)
            time("one thread", "train.threads=1")
            time("quota", before=limited)
            with neighbors():
                time("busy")
    median = {name: statistics.median(speed for speed, _ in each) for name, each in found.items()}
    print(f"quota: {how}; {len(os.sched_getaffinity(0))} processors; load before: {os.getloadavg()[0]:.1f}\n")
    print("| run | images/s | threads |\n|---|---|---|")
    for name, each in found.items():
        print(f"| {name} | {median[name]:.1f} | {', '.join(str(count) for _, count in each)} |")
    print("\n| ratio | measured | at least |\n|---|---|---|")
    ratios = [("busy", "quiet", 0.4), ("quota", "one thread", 0.9), ("quiet", "spinning", 0.95)]
    for name, other, least in ratios:
        print(f"| {name} / {other} | {median[name] / median[other]:.2f} | {least} |")
    if any(median[name] < least * median[other] for name, other, least in ratios):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
