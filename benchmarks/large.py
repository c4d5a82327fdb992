"""Large images through every backbone: time and peak memory at 512, 800 and 1333 x 800 px, ours folded against plain.

    python benchmarks/large.py
    python benchmarks/large.py --models cait_xxs24_224 --sizes 512     # a short try

Each way and size is a process of its own, with one image: the plain model in eager PyTorch, float32 and bf16, and in
OpenVINO with its own settings, in bf16; folded in OpenVINO. Median milliseconds of at least three calls, warm-up
excluded; MiB of resident memory at its peak, building included, above what was held before. Memory is counted to be
below 8 GiB at 800x1333. Models that the JSON holds and that are not asked for stay in it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from anyres.deploy.engines.backend import Backend
from anyres.deploy.predictor import machine
from anyres.flow import Size
from size_cost import OPTIONS, cost_alone

WAYS = {
    "plain, eager, fp32": (False, Backend("eager", "fp32")),
    "plain, eager, bf16": (False, Backend("eager", "bf16")),
    "plain, openvino, bf16": (False, Backend("openvino", "bf16")),
    "folded, openvino, bf16": (True, Backend("openvino", "bf16")),
}
MOST_MIB = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--sizes", nargs="+", default=["512", "800", "800x1333"])
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large.json")
    options = parser.parse_args()
    facts: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    facts |= {
        "processor": machine(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    for name in options.models:
        found = facts["models"][name] = {
            str(size): {way: cost_alone(name, *how, size, options.seconds) for way, how in WAYS.items()}
            for size in map(Size.parse, options.sizes)
        }
        print(name, found, flush=True)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    above = [each["mib"] for by_size in facts["models"].values() for ways in by_size.values() for each in ways.values()]
    print(f"most: {max(above):.0f} MiB", "" if max(above) < MOST_MIB else "(above 8 GiB)")


if __name__ == "__main__":
    main()
