"""What leaving out images that stochastic depth drops saves of a training step on a CPU.

    python benchmarks/skip_dropped.py

Models and rates of published recipes, 16 images at the recipe's size, bf16 autocast where the chip has it, forward,
backward and fused AdamW; all branches computed against kept images alone, in turn, other masks in every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from anyres.models import create_model
from anyres.ops.residual import skip_dropped
from anyres.training.parallel import autocast_dtype

CASES = {"restv2_base": (0.3, 224), "S60": (0.05, 224), "deit3_base": (0.2, 192), "deit3_large": (0.45, 192)}
IMAGES = 16


def stepping(name: str, rate: float, side: int, skip: bool) -> Callable[[], None]:
    """One update of the model, on the same images every time."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": side} if "deit3" in name else {}
    model = create_model(name, drop_path=rate, **options).train()
    if skip:
        skip_dropped(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x, target = torch.randn(IMAGES, 3, side, side), torch.randint(0, 1000, (IMAGES,))
    dtype = autocast_dtype("auto")

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x).float(), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "skip_dropped.json")
    options = parser.parse_args()
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "images": IMAGES,
        "models": {},
    }
    for name in options.models:
        rate, side = CASES[name]
        ways = {"all": stepping(name, rate, side, False), "kept": stepping(name, rate, side, True)}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(options.rounds + 1):
            for way, step in ways.items():
                torch.manual_seed(i)
                start = time.perf_counter()
                step()
                if i:
                    seconds[way].append(round(time.perf_counter() - start, 4))
        ratios = [a / b for a, b in zip(seconds["all"], seconds["kept"], strict=True)]
        facts["models"][name] = {
            "drop_path": rate,
            "size": side,
            "seconds": seconds,
            "ratio": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        print(name, {key: value for key, value in facts["models"][name].items() if key != "seconds"})
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
