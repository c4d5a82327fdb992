"""What folding gives in plain eager PyTorch: the folded model over the unfolded one, float32 and bf16, at 224 px.

    python benchmarks/folding.py

Eight images at a time, every configuration a process of its own, timed in turn; medians of the rounds. What it gives in
the other engines stands in inference.py's results, as "anyres" against "openvino" and "onnxruntime".
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from anyres.cli.bench_results import show_comparison
from anyres.flow import Size
from anyres.runs.bench import COMPARED, BenchmarkConfig, bench_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(COMPARED), choices=COMPARED)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "folding.json")
    options = parser.parse_args()
    config = BenchmarkConfig(
        models=options.models,
        weights=None,
        sizes=[Size(224, 224)],
        batches=[8],
        backends=["eager:fp32", "eager:bf16"],
        against=["plain"],
        rounds=options.rounds,
        seconds=options.seconds,
        threads=None,
        compiled=False,
    )
    facts = bench_models(config, options.out, show=show_comparison)
    for ratio in facts["ratios"]:
        if " in " in ratio["against"]:
            print(json.dumps(ratio))


if __name__ == "__main__":
    main()
