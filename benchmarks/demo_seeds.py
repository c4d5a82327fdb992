"""A demo with several seeds: mean and spread of its metric by size, the lead at each size, and what it cost.

    python benchmarks/demo_seeds.py --seeds 0 1 2            # or: full, segment

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
from anyres.runs.demo import ANY, KINDS, SINGLE, DemoName, run_demo
from anyres.runs.opened import open_run


def run(name: DemoName, seed: int, folder: Path) -> dict[str, Any]:
    """One seed's scores in per cent, by model and size, and what it cost."""
    if not (folder / "curve.csv").exists():
        run_demo(folder, seed, None, name)
    scores: dict[str, dict[str, float]] = {ANY: {}, SINGLE: {}}
    for result in read_csv(folder / "curve.csv", {}):
        scores[result.model][str(result.size)] = round(100 * result.best.value, 2)
    facts = {name: open_run(folder / name).facts for name in (ANY, SINGLE)}
    return {
        "seed": seed,
        "scores": scores,
        "lead": {size: round(value - scores[SINGLE][size], 2) for size, value in scores[ANY].items()},
        **{key: {name: facts[name][key] for name in facts} for key in ("steps", "pixels", "seconds")},
    }


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation."""
    sd = round(statistics.stdev(values), 2) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 2), "sd": sd}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=list(KINDS), default="sizes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="default: .bench_data/demo-NAME")
    parser.add_argument("--out", type=Path, help="default: results/demo_seeds_NAME.json")
    options = parser.parse_args()
    work = options.work or Path(f".bench_data/demo-{options.name}")
    out = options.out or Path(__file__).parent / "results" / f"demo_seeds_{options.name}.json"
    runs = [run(options.name, seed, work / str(seed)) for seed in options.seeds]
    sizes = list(runs[0]["lead"])
    summary = {
        name: {size: spread([r["scores"][name][size] for r in runs]) for size in sizes} for name in (ANY, SINGLE)
    }
    result = {"torch": torch.__version__, "device": "CPU", "runs": runs, "summary": summary}
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
