"""Inference on a CPU at 224 px: our fastest (folded, any engine) against the best anyone gets out of the plain model.

    python benchmarks/inference.py --batches 8 1 --rounds 5
    python benchmarks/inference.py --batches 1 --quick  # less time: OpenVINO in one precision, eager PyTorch

Peers: timm's model where it has one, else our own unfolded, by PyTorch (eager; compiled with --compiled) in float32 and
bf16; OpenVINO and onnxruntime fed the plain unfolded model, as they are, and run as ours: OpenVINO with parts of
a batch side by side ("openvino, tuned"; part of "all peers"). Every configuration is a process of its
own, timed in turn (A B C A B C); ratios are of the medians of a round. The JSON is rewritten after every model. Weights
are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from anyres.cli.bench_results import show_comparison
from anyres.config import UserError
from anyres.flow import Size, has_bf16
from anyres.runs.bench import COMPARED, BenchmarkConfig, bench_models, timm_name

OURS = ["openvino:bf16", "openvino:fp32", "onnxruntime:fp32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(COMPARED))
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--processes", type=int, default=1, help="of each configuration, one after another")
    parser.add_argument("--quick", action="store_true", help="ours in the fastest precision, without onnxruntime")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile, of ours and of the peers")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "inference.json")
    options = parser.parse_args()
    ours = OURS if has_bf16(torch.device("cpu")) else OURS[1:]
    ours = ours[:1] if options.quick else ours
    facts = json.loads(options.out.read_text()) if options.out.exists() else {}
    for batch in options.batches:
        for model in options.models:
            config = BenchmarkConfig(
                models=[model],
                weights=None,
                sizes=[Size(224, 224)],
                batches=[batch],
                backends=[*ours, *(["inductor:bf16", "inductor:fp32"] if options.compiled else [])],
                against=[peer_of(model), "openvino", *([] if options.quick else ["onnxruntime"])],
                rounds=options.rounds,
                seconds=options.seconds,
                threads=None,
                compiled=options.compiled,
                processes=options.processes,
            )
            facts[f"{model} x {batch}{', compiled' if options.compiled else ''}"] = bench_models(
                config, show=show_comparison
            )
            options.out.write_text(json.dumps(facts, indent=1) + "\n")


def peer_of(model: str) -> str:
    """timm where it has the model."""
    try:
        timm_name(model)
    except UserError:
        return "plain"
    return "timm"


if __name__ == "__main__":
    main()
