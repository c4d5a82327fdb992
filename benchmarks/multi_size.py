"""A recipe that trains at several sizes beside the same recipe at one size: quality by size, with several seeds.

    python benchmarks/multi_size.py detect/lungs --single 224 --seeds 0 1 2

Each training is `anyres train RECIPE --out FOLDER` with as many steps, scored on the test split; a folder whose
training has ended is read, not trained again. Every figure is in per cent; what an interval is, docs/evaluation.md
says. Writes benchmarks/results/multi_size_RECIPE.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from anyres.deploy.predictor import machine

QUALITY = re.compile("box_ap|mask_ap|miou|pixel|top1")


def train(recipe: str, out: Path, changes: list[str]) -> dict[str, Any]:
    """One training's scores by size, and what it cost; its progress is shown on stderr."""
    if not (out / "curve.csv").exists():
        command = [sys.executable, "-m", "anyres", "train", recipe, "--out", str(out), *changes]
        subprocess.run(command, check=True, stdout=sys.stderr)
    facts = json.loads((out / "run.json").read_text())
    with (out / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "steps": facts["steps"],
        "pixels": facts["pixels"],
        "seconds": facts["seconds"],
        "scores": {size(row): quality(row) for row in rows},
    }


def size(row: dict[str, str]) -> str:
    return row["height"] if row["height"] == row["width"] else f"{row['height']}x{row['width']}"


def quality(row: dict[str, str]) -> dict[str, float]:
    """Every quality of a row that could be worked out, with its interval: box_ap, box_ap_low, box_ap50, ..."""
    values = {name: float(value) for name, value in row.items() if QUALITY.match(name) and value}
    return {name: round(100 * value, 2) for name, value in values.items() if not math.isnan(value)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--single", required=True, help="the size of the twin that trains at one size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="default: .bench_data/multi-size-RECIPE")
    parser.add_argument("--out", type=Path, help="default: results/multi_size_RECIPE.json")
    parser.add_argument("changes", nargs="*", help="KEY=VALUE for both, as `anyres train` takes them")
    options = parser.parse_intermixed_args()
    name = options.recipe.replace("/", "-")
    work = options.work or Path(f".bench_data/multi-size-{name}")
    out = options.out or Path(__file__).parent / "results" / f"multi_size_{name.replace('-', '_')}.json"
    both = ["data.eval_split=test", "train.eval_every=null", *options.changes]
    twins = {"multi": both, "single": [*both, f"views.sizes=[{options.single}]"]}
    runs = []
    for seed in options.seeds:
        found: dict[str, Any] = {"seed": seed}
        for twin, how in twins.items():
            found[twin] = train(options.recipe, work / f"{twin}-{seed}", [*how, f"train.seed={seed}"])
        runs.append(found)
    headline = next(iter(next(iter(runs[0]["multi"]["scores"].values()))))
    means = {
        twin: {
            shown: round(statistics.mean(run[twin]["scores"][shown][headline] for run in runs), 2)
            for shown in runs[0][twin]["scores"]
        }
        for twin in twins
    }
    result = {
        "recipe": options.recipe,
        "changes": options.changes,
        "single": options.single,
        "machine": machine(torch.device("cpu")),
        "torch": torch.__version__,
        "headline": headline,
        "means": means,
        "runs": runs,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"headline": headline, "means": means}, indent=1))


if __name__ == "__main__":
    main()
