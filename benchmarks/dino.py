"""What DINO teaches features without labels: 20-NN on Groceries' 14 fine classes, trained against untrained.

    python benchmarks/dino.py --seeds 0 1 2

Each seed trains the recipe dino/nano on the photographs without their labels; then the labels of the training images
vote, by likeness of features at 64 px, on the 661 test images: with the trained backbone, and with a fresh one as it
is drawn. Top-1 in per cent. A finished run is read, not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from anyres.evaluation.probe import knn
from anyres.flow import Size
from anyres.recipe import load_recipe
from anyres.runs.opened import DataSpec, build_backbone, open_run
from anyres.runs.probe import probed_images
from anyres.runs.train import train_run

SIZE, NUM_NEIGHBORS = Size(64, 64), 20
SET = ["data.source=groceries:fine", "data.train_split=trainval", "data.eval_split=test"]


def run(seed: int, epochs: int, work: Path) -> dict[str, float]:
    """One seed's top-1, trained and untrained."""
    folder = work / f"{epochs}-{seed}"
    train_run(load_recipe("dino/nano", [*SET, f"train.seed={seed}", f"train.epochs={epochs}"]), folder)
    trained = open_run(folder)
    train, test = probed_images(trained, DataSpec())

    def top1() -> float:
        bank, asked = (trained.pooled(images, SIZE) for images in (train, test))
        found = knn(bank, asked, len(train.source.classes), [NUM_NEIGHBORS], trained.device)
        return round(100 * found[0].top1, 2)

    learned = top1()
    trained.model.load_state_dict(build_backbone(trained.recipe, trained.model.num_classes).state_dict())
    return {"trained": learned, "untrained": top1()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path(".bench_data/dino"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dino.json")
    options = parser.parse_args()
    runs = {}
    for seed in options.seeds:
        runs[str(seed)] = run(seed, options.epochs, options.work)
        leads = [each["trained"] - each["untrained"] for each in runs.values()]
        facts: dict[str, Any] = {
            "torch": torch.__version__,
            "epochs": options.epochs,
            "runs": runs,
            "lead": statistics.mean(leads),
        }
        if len(leads) > 1:
            facts["sd"] = statistics.stdev(leads)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
        print(seed, runs[str(seed)])


if __name__ == "__main__":
    main()
