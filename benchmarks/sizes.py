"""Which sizes run: 481 square sides from 32 to 512 px and 200 random rectangles of 1 to 1024 px, for every family.

One image each in evaluation mode, models of few blocks; "runs" is finite logits of the right shape. The official
column applies the rules found by running official code (the reasons are in docs/resolution.md).

    python benchmarks/sizes.py            writes benchmarks/results/sizes.json and prints the table
"""

from __future__ import annotations

import argparse
import json
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import track

import anyres

SQUARES = range(32, 513)
VIT = {"dim": 48, "depth": 2, "heads": 2}


class Family(NamedTuple):
    title: str
    name: str
    options: dict[str, Any]
    accepts: Callable[[int], bool]
    """Official code runs on a square of this side."""
    exact: Callable[[int], bool]
    """... and looks at every pixel, so that ours is equal."""


def only(side: int) -> Callable[[int], bool]:
    return lambda s: s == side


def rest_v1(side: int) -> bool:
    return math.ceil(side / 4) % 8 == 0 and math.ceil(side / 32) > 1


def always(_: int) -> bool:
    return True


def of_16(side: int) -> bool:
    return side % 16 == 0


def of_32(side: int) -> bool:
    return side % 32 == 0


FAMILIES = (
    Family("ResT v1", "rest_lite", {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}, rest_v1, rest_v1),
    Family("ResTv2", "restv2_nano", {}, of_32, of_32),
    Family("ResFormer", "resformer_tiny_patch16", VIT, always, of_16),
    Family("ResMLP", "resmlp_12", {"dim": 48, "depth": 2, "any_size": True}, only(224), only(224)),
    Family("DeiT", "deit_tiny_patch16_224", VIT, only(224), only(224)),
    Family("DeiT, distilled", "deit_tiny_distilled_patch16_224", VIT, only(224), only(224)),
    Family("DeiT III, Three Things", "deit_tiny_patch16_LS", VIT, only(224), only(224)),
    Family("CaiT", "cait_XXS24_224", VIT, only(224), only(224)),
    Family("PatchConvNet", "S60", {"dim": 48, "depth": 2}, always, always),
    Family("DINO ViT", "vit_tiny", VIT, always, of_16),
)


@torch.no_grad()
def runs(model: torch.nn.Module, height: int, width: int) -> bool:
    logits = model(torch.randn(1, 3, height, width))
    return logits.shape == (1, 10) and bool(logits.isfinite().all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sizes.json")
    out = parser.parse_args().out
    draw = random.Random(0)
    rectangles = [(draw.randint(1, 1024), draw.randint(1, 1024)) for _ in range(200)]
    rows: list[dict[str, Any]] = []
    for family in FAMILIES:
        torch.manual_seed(0)
        model = anyres.create_model(family.name, 10, **family.options).eval()
        rows.append(
            {
                "family": family.title,
                "official": sum(map(family.accepts, SQUARES)),
                "official_every_pixel": sum(map(family.exact, SQUARES)),
                "anyres": sum(runs(model, s, s) for s in track(SQUARES, family.title, transient=True)),
                "anyres_of_200_rectangles": sum(runs(model, *r) for r in track(rectangles, transient=True)),
            }
        )
        print(rows[-1], flush=True)
    out.write_text(json.dumps({"what": __doc__, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    print("\n| family | official code | anyres | of 200 rectangles |\n|---|---|---|---|")
    for row in rows:
        seen = row["official"] - row["official_every_pixel"]
        cut = f" ({seen} lose border pixels)" if seen else ""
        print(f"| {row['family']} | {row['official']}{cut} | {row['anyres']} | {row['anyres_of_200_rectangles']} |")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
