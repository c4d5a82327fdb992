"""At which sizes should the demo train? Lists of sizes compared by folds of the training photographs alone.

    python benchmarks/demo_folds.py            # 3 folds x 3 lists, about 2 minutes each on 2 cores

Each fold holds out a third of the 732 training photographs, class by class, and is trained with its own seed for as
many steps as the demo makes; top-1 in per cent at every size the demo scores, of which no test photograph is one. What
has been trained is read, not trained again. Writes benchmarks/results/demo_folds.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyres.data.sources import Source, open_source
from anyres.deploy.predictor import machine
from anyres.recipe import load_recipe
from anyres.runs.inputs import evaluated_sizes
from anyres.runs.opened import measure_models, open_run
from anyres.runs.train import train_run

FOLDS, BATCH, STEPS = 3, 32, 660
LISTS = {
    "a rectangle in five": ["160", "96x128", "96", "64", "32"],
    "a rectangle in four": ["160", "96x128", "64", "32"],
    "two rectangles in six": ["160", "96x128", "128x96", "96", "64", "32"],
}


def folds_of(source: Source) -> np.ndarray:
    """The fold that holds out each photograph."""
    rng = np.random.default_rng(0)
    target = np.array([record.target for record in source.records])
    fold = np.empty(len(target), int)
    for label in np.unique(target):
        where = rng.permutation(np.flatnonzero(target == label))
        fold[where] = np.arange(len(where)) % FOLDS
    return fold


def manifest(source: Source, held_out: np.ndarray, folder: Path) -> Path:
    """The photographs as files, with a table that says which are held out."""
    path = folder / "m.csv"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "split"])
            for i, record in enumerate(source.records):
                assert isinstance(record.source, bytes)
                (folder / f"{i:04}.jpg").write_bytes(record.source)
                table.writerow([f"{i:04}.jpg", str(record.target), "val" if held_out[i] else "train"])
    return path


def train(sizes: list[str], fold: int, data: Path, images: int, folder: Path) -> dict[str, float]:
    """Top-1 in per cent by size, on what the fold holds out."""
    told = folder.with_suffix(".json")
    if not told.exists():
        changes = [f"train.seed={fold}", f"train.epochs={round(STEPS / (images // BATCH))}"]
        changes += [f"data.source={data}", "data.train_split=train", "data.eval_split=val"]
        changes += [f"views.sizes={json.dumps(sizes)}"]
        train_run(load_recipe("demo/any_size", changes), folder, report=False)
        run = open_run(folder)
        measured = measure_models({"it": run}, run.images(), evaluated_sizes(run.recipe))["it"]
        told.write_text(json.dumps({str(one.result.size): round(100 * one.result.best.value, 2) for one in measured}))
    scores: dict[str, float] = json.loads(told.read_text())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".bench_data/demo-folds"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo_folds.json")
    options = parser.parse_args()
    source = open_source("groceries", "trainval")
    fold = folds_of(source)
    found: dict[str, Any] = {}
    for name, sizes in LISTS.items():
        each = []
        for held in range(FOLDS):
            data = manifest(source, fold == held, options.work / f"data{held}")
            folder = options.work / f"{name.replace(' ', '-')}-{held}"
            each.append(train(sizes, held, data, int((fold != held).sum()), folder))
        means = {size: round(statistics.mean(scores[size] for scores in each), 2) for size in each[0]}
        found[name] = {"sizes": sizes, "folds": each, "mean": means, "all": round(statistics.mean(means.values()), 2)}
    result = {
        "machine": machine(torch.device("cpu")),
        "torch": torch.__version__,
        "photographs": len(source.records),
        "lists": found,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: entry["mean"] | {"all": entry["all"]} for name, entry in found.items()}, indent=1))


if __name__ == "__main__":
    main()
