"""How long the command line takes to answer, beside importing timm: commands in turn, medians of five after a first.

    python benchmarks/startup.py [--rounds 5]

Seconds by the clock and of processor time, of the whole command. `pick` and `predict` use a run of restv2_nano on drawn
images, trained before. Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
LIMITS = {"anyres --help": 0.6, "anyres models": 0.6, "anyres recipes": 0.6, "anyres pick": 0.6, "anyres predict": 3.5}
"""CPU seconds, at most."""


def cpu(command: list[str], cwd: Path) -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    from tests.pictures import make_folder

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = make_folder(work / "shapes", per_class=6)
        anyres = [sys.executable, "-m", "anyres"]
        small = ["views.sizes=[32]", "evaluate.sizes=[32]", "train.epochs=1", "data.workers=0", "data.batch_size=6"]
        cpu([*anyres, "train", "restv2_nano", "--data", str(data), "--out", "run", *small], work)
        picture = next(path for path in sorted(data.rglob("*")) if path.is_file())
        commands = {
            "anyres --help": [*anyres, "--help"],
            "anyres models": [*anyres, "models"],
            "anyres recipes": [*anyres, "recipes"],
            "anyres pick": [*anyres, "pick", "run", "--max-ms", "1e6"],
            "anyres predict": [*anyres, "predict", "run", str(picture)],
            "import timm": [sys.executable, "-c", "import timm"],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for turn in range(rounds + 1):
            for name, command in commands.items():
                measured = cpu(command, work)
                if turn:
                    found[name].append(measured)
    rows = {
        name: {
            "seconds": round(statistics.median(clock for clock, _ in each), 3),
            "cpu_seconds": round(statistics.median(used for _, used in each), 3),
            "at_most": LIMITS.get(name),
        }
        for name, each in found.items()
    }
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    result = {"what": __doc__, "processor": model.partition(": ")[2] or platform.processor(), "commands": rows}
    Path(__file__).with_name("results").joinpath("startup.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
