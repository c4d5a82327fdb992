"""The demo with several seeds: mean and spread of top-1 by size, and whether each seed keeps what the demo promises.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --work .bench_data/demo

Each seed is `anyres demo --seed N` in its own folder; a folder that holds a finished comparison is read, not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from anyres.evaluation.curve_file import read_csv
from anyres.runs.demo import ANY, SINGLE, run_demo
from anyres.runs.opened import open_run

OWN = "96"  # the single-size model's own size
SMALLEST, LARGEST = 64, 224  # between these any-size is to stay within 4 points of its best


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One seed's top-1 in per cent, by model and size, and what it cost."""
    if not (folder / "curve.csv").exists():
        run_demo(folder, seed, None)
    top1: dict[str, dict[str, float]] = {ANY: {}, SINGLE: {}}
    for result in read_csv(folder / "curve.csv", {}):
        top1[result.model][str(result.size)] = round(100 * result.metrics["top1"].value, 2)
    facts = {name: open_run(folder / name).facts for name in (ANY, SINGLE)}
    ours, twin = top1[ANY], top1[SINGLE]
    best = max(ours.values())
    sides = {size: min(map(int, size.split("x"))) for size in ours}
    middle = [ours[size] for size, side in sides.items() if SMALLEST <= side <= LARGEST]
    return {
        "seed": seed,
        "top1": top1,
        "best any-size": best,
        "farthest below its best, 64 to 224 px": round(best - min(middle), 2),
        "lead at 32 px": round(ours["32"] - twin["32"], 2),
        "lead at the twin's own size": round(ours[OWN] - twin[OWN], 2),
        "pixels": {name: facts[name]["pixels"] for name in facts},
        "training seconds": {name: facts[name]["seconds"] for name in facts},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path(".bench_data/demo"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo_seeds.json")
    options = parser.parse_args()
    runs = [run(seed, options.work / str(seed)) for seed in options.seeds]
    summary = {
        name: {
            size: {
                "mean": round(statistics.mean(r["top1"][name][size] for r in runs), 2),
                "sd": round(statistics.stdev(r["top1"][name][size] for r in runs), 2) if len(runs) > 1 else None,
            }
            for size in runs[0]["top1"][name]
        }
        for name in (ANY, SINGLE)
    }
    result = {"torch": torch.__version__, "device": "CPU", "n_test": 661, "runs": runs, "summary": summary}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
