"""A Predictor at its defaults, given batches, against OpenVINO on the plain model compiled for the same batch.

    python benchmarks/default_predictor.py
    python benchmarks/default_predictor.py --models deit3_small --batches 3 8 --rounds 3     # a short try

``ours``: ``anyres.Predictor(model, size=224)``, which is never told a batch, after three calls. ``openvino``: the model
unfolded, in float32 and in bf16, with OpenVINO's own settings. Both in one process, in turn; medians of milliseconds,
and ratios within a round to the faster of the two.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from pathlib import Path

import torch

import anyres
from anyres.deploy.engines.backend import Backend, build
from anyres.deploy.engines.engine import Runner
from anyres.deploy.predictor import machine
from anyres.runs.bench import COMPARED

WARM_UP = 3


@torch.no_grad()
def contest(name: str, batches: list[int], rounds: int) -> dict[str, object]:
    model = anyres.create_model(name).eval()
    ours = anyres.Predictor(model, size=224)
    found: dict[str, object] = {"backend": str(ours.backend)}
    for batch in batches:
        x = torch.randn(batch, 3, 224, 224)
        ways: dict[str, Runner] = {"ours": ours}
        for precision in ("fp32", "bf16"):
            ways[f"openvino:{precision}"] = build(copy.deepcopy(model), Backend("openvino", precision), x, tuned=False)
        for run in ways.values():
            for _ in range(WARM_UP):
                run(x)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                run(x)  # the threads of the one before may still be spinning
                start = time.perf_counter()
                run(x)
                times[way].append(1000 * (time.perf_counter() - start))
        ratios = [min(fp32, bf16) / own for own, fp32, bf16 in zip(*times.values(), strict=True)]
        found[str(batch)] = {
            **{f"{way}, ms": round(statistics.median(each), 2) for way, each in times.items()},
            "ratio": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        print(name, batch, found[str(batch)], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(COMPARED))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 3, 8, 32])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "default_predictor.json")
    options = parser.parse_args()
    facts: dict[str, object] = {
        "processor": machine(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    for name in options.models:
        facts[name] = contest(name, options.batches, options.rounds)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
