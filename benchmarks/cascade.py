"""What a trained any-size model gives inside an accuracy budget: eager float32, the fastest engine, int8, a cascade.

    python benchmarks/cascade.py --seeds 0 1 2

The runs are those of `benchmarks/demo_seeds.py full` (the longer demo's any-size model, Groceries). Of the 661 test
images one half chooses the cascades' thresholds, those of int8 by int8's own answers, whose ranges are read from
training images; the other half is scored by all ways in turn, several times over, each in batches of 8 (a cascade
gathers what a look leaves open into batches too); medians. top-1 in per cent;
"times eager" is images/s over eager float32 at the largest size, "times alone" over the same engine and precision at
the largest size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyres.deploy.cascade import CascadePredictor
from anyres.deploy.predictor import EngineOptions
from anyres.flow import Size
from anyres.runs.cascade import FILE, batches, choose_by_half, choose_cascade, predictors_for, run_stages
from anyres.runs.opened import TrainedModel, open_run

ROUNDS = 5
Way = Callable[[dict[Size, Tensor]], Tensor]


def run(folder: Path, sizes: list[Size], batch: int, max_loss: float) -> dict[str, Any]:
    """One model's figures."""
    cascade = choose_cascade(folder, sizes, max_loss, EngineOptions(batch=batch)).cascade
    trained = open_run(folder)
    largest = sizes[-1]
    fast = predictors_for(trained, sizes, EngineOptions(batch=batch))
    ways: dict[str, Way] = {
        "eager fp32": lambda views: torch.cat([trained.model(part) for part in torch.split(views[largest], batch)]),
        f"{fast[largest].backend}": lambda views: fast[largest].forward(views[largest]),
    }
    small = predictors_for(trained, sizes, EngineOptions("openvino:int8", batch=batch))
    ways["openvino:int8"] = lambda views: small[largest].forward(views[largest])
    fewer = choose_by_half(*run_stages(trained, trained.images(), small), max_loss)
    for kind, predictors, each in (("", fast, cascade), ("int8 ", small, fewer)):
        runner = CascadePredictor([predictors[size] for size in each.parsed], each)
        ways[f"{kind}cascade {'-'.join(each.sizes)}"] = partial(through, runner, each.parsed)
    figures = race(trained, sizes, ways)
    eager = figures["eager fp32"]
    for name, figure in figures.items():
        figure["times eager"] = round(figure["images/s"] / eager["images/s"], 2)
        figure["lost points"] = round(eager["top1"] - figure["top1"], 2)
        if "cascade" in name:
            alone = figures["openvino:int8" if name.startswith("int8") else str(fast[largest].backend)]
            figure["times alone"] = round(figure["images/s"] / alone["images/s"], 2)
    return {"cascade": json.loads((folder / FILE).read_text()), "ways": figures}


def through(runner: CascadePredictor, sizes: Sequence[Size], views: dict[Size, Tensor]) -> Tensor:
    """The cascade's answers."""
    return runner.forward([views[size] for size in sizes])


@torch.inference_mode()
def race(trained: TrainedModel, sizes: list[Size], ways: dict[str, Way]) -> dict[str, dict[str, Any]]:
    """The scored half through every way in turn, ROUNDS times, each twice: top-1, images/s of the second times."""
    seen = {size: list(batches(trained, trained.images(), size)) for size in sizes}
    pixels = {size: torch.cat([batch.views[0] for batch in each])[1::2] for size, each in seen.items()}
    target = torch.cat([batch.targets.of(0) for batch in seen[sizes[0]]])[1::2]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    right = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            way(pixels)  # builds engines, and lets the threads of the way before come to rest
            start = time.perf_counter()
            scores = way(pixels)
            rates[name].append(round(len(target) / (time.perf_counter() - start), 1))
            right[name] = scores.argmax(1) == target
    return {
        name: {
            "top1": round(100 * found.double().mean().item(), 2),
            "images/s": statistics.median(rates[name]),
            "rounds": rates[name],
        }
        for name, found in right.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 176])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-loss", type=float, default=0.3)
    parser.add_argument("--work", type=Path, default=Path(".bench_data/demo-full"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cascade.json")
    options = parser.parse_args()
    sizes = [Size(side, side) for side in options.sizes]
    result: dict[str, object] = {"torch": torch.__version__, "batch": options.batch, "max loss": options.max_loss}
    runs = {}
    for seed in options.seeds:
        folder = options.work / str(seed) / "any-size"
        runs[str(seed)] = run(folder, sizes, options.batch, options.max_loss)
        result["runs"] = runs
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    leads = [next(w["times alone"] for k, w in r["ways"].items() if k.startswith("cascade")) for r in runs.values()]
    print("cascade over its largest size, median:", statistics.median(leads))


if __name__ == "__main__":
    main()
