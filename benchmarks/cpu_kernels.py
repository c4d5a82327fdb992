"""The two paths taken for a processor's sake, each against its plain twin in one run, and what they give a whole step.

    python benchmarks/cpu_kernels.py

Attention written out against PyTorch's fused kernel, and depthwise convolution in float32 against bf16, both forward
and backward at the shapes of our models; then one training step of restv2_nano and resformer_nano under bf16 autocast
with and without both, and in float32. A B A B ..., medians of --runs; one thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from anyres.models import create_model
from anyres.ops import attention
from anyres.ops.attention import explicit_attention
from anyres.ops.convolution import DepthwiseConv2d

SHAPES = {  # b, heads, queries, keys, width
    "restv2_nano stage 1 at 96 px": (32, 1, 576, 9, 32),
    "restv2_nano stage 3 at 96 px": (32, 4, 36, 9, 32),
    "resformer_nano at 96 px": (32, 2, 145, 145, 64),
    "resformer_small at 224 px": (8, 6, 197, 197, 64),
    "restv2_tiny stage 1 at 224 px": (8, 1, 3136, 49, 96),
}


def paired(a: Callable[[], None], b: Callable[[], None], runs: int) -> dict[str, float]:
    """Medians in ms of ``a`` and ``b`` run in turn, and the median of the ratios b / a."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(runs + 2):
        for make, kept in zip((a, b), times, strict=True):
            start = time.perf_counter()
            make()
            if i >= 2:  # the first two are warm-up
                kept.append(1000 * (time.perf_counter() - start))
    ratios = [y / x for x, y in zip(*times, strict=True)]
    ms = [round(statistics.median(t), 3) for t in times]
    return {"ours_ms": ms[0], "plain_ms": ms[1], "plain_over_ours": round(statistics.median(ratios), 2)}


def attention_pair(shape: tuple[int, int, int, int, int], runs: int) -> dict[str, float]:
    """Forward and backward in bf16."""
    b, g, n, m, d = shape
    q, k, v = (torch.randn(b, g, length, d, dtype=torch.bfloat16, requires_grad=True) for length in (n, m, m))
    upstream = torch.randn(b, g, n, d, dtype=torch.bfloat16)
    return paired(
        lambda: explicit_attention(q, k, v).backward(upstream),
        lambda: F.scaled_dot_product_attention(q, k, v).backward(upstream),
        runs,
    )


def depthwise_pair(channels: int, side: int, multiplier: int, runs: int) -> dict[str, float]:
    """Forward and backward of a 3x3 under bf16 autocast."""
    ours = DepthwiseConv2d(channels, 3, padding=1, multiplier=multiplier)
    plain = nn.Conv2d(channels, channels * multiplier, 3, padding=1, groups=channels)
    x = torch.randn(32, channels, side, side, requires_grad=True)

    def step(module: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        out.float().sum().backward()

    return paired(lambda: step(ours), lambda: step(plain), runs)


@contextmanager
def plain_paths() -> Iterator[None]:
    """PyTorch's own attention and convolution everywhere."""
    forward, most = DepthwiseConv2d.forward, attention.MOST_KEYS
    DepthwiseConv2d.forward, attention.MOST_KEYS = nn.Conv2d.forward, -1  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        DepthwiseConv2d.forward, attention.MOST_KEYS = forward, most  # type: ignore[method-assign]


def step_pair(name: str, side: int, bf16_twin: bool, runs: int) -> dict[str, float]:
    """One training step of 32 images: ours in bf16 against plain bf16, or against plain float32."""
    model = create_model(name, 5)
    x = torch.randn(32, 3, side, side)

    def step(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(x)
        logits.float().square().mean().backward()

    def plain() -> None:
        with plain_paths():
            step(bf16_twin)

    return paired(lambda: step(True), plain, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu_kernels.json")
    options = parser.parse_args()
    runs = options.runs
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "attention": {name: attention_pair(shape, runs) for name, shape in SHAPES.items()},
        "depthwise": {
            f"{c} channels x {k}, {s} px": depthwise_pair(c, s, k, runs)
            for c, s, k in ((32, 24, 1), (32, 3, 64), (64, 3, 16), (96, 56, 1))
        },
        "step against plain bf16": {
            f"{name} at {side} px": step_pair(name, side, True, runs)
            for name in ("restv2_nano", "resformer_nano")
            for side in (64, 96, 128)
        },
        "step against plain float32": {
            f"{name} at 96 px": step_pair(name, 96, False, runs) for name in ("restv2_nano", "resformer_nano")
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
