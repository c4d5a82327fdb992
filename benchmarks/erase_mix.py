"""What a step does to its views before the model sees them: bytes -> normalized, erased, mixed floats.

    python benchmarks/erase_mix.py
    python benchmarks/erase_mix.py --images 32 --rounds 3          # a short try

3 views of 256 images at 224 px, erased with probability 0.25 and mixed by mixup or CutMix, as in the DeiT recipes. Two
ways, in turn on the same bytes: ``ours``, and ``image by image``, which it was before: a pass over all views for each
operation, and timm's RandomErasing called for one image after another. Both must give the same numbers to the last bit.
Median seconds by the clock, and ratios within a round, also of processor time, which busy neighbors change less (with
OMP_NUM_THREADS=1). The places of our boxes against timm's own draws: areas, aspect ratios and centers, by two-sample
Kolmogorov-Smirnov.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing

from anyres.data.augment import mix_seed, preserve_rng_state, seed_all
from anyres.data.erasing import draw_place, erase
from anyres.data.mix import draw_box, mix, mix_rng, normalize, smooth_one_hot
from anyres.data.mix_config import MixConfig
from anyres.deploy.predictor import machine
from anyres.flow import Batch, Labels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ERASING, CLASSES, SMOOTHING = 0.25, 1000, 0.1
CPU = torch.device("cpu")
KINDS = {"mixup": MixConfig(mixup=0.8, smoothing=SMOOTHING), "cutmix": MixConfig(cutmix=1.0, smoothing=SMOOTHING)}
Made = tuple[tuple[torch.Tensor, ...], torch.Tensor]


def ours(batch: Batch, how: MixConfig, step: int, lap: Callable[[str], None]) -> Made:
    batch = normalize(batch, MEAN, STD, CPU)
    lap("normalize")
    batch = erase(batch, ERASING, 0, step)
    lap("erase")
    made = mix(batch.views, batch.targets.of(0), CLASSES, how, mix_rng(0, step))
    lap("mix")
    return made


def image_by_image(batch: Batch, how: MixConfig, step: int, lap: Callable[[str], None]) -> Made:
    """As it was before."""
    s = torch.tensor(STD, dtype=torch.float64)
    scale = (1 / (255 * s)).float().view(-1, 1, 1)
    shift = (-torch.tensor(MEAN, dtype=torch.float64) / s).float().view(-1, 1, 1)
    views = tuple(view.float().mul_(scale).add_(shift) for view in batch.views)
    lap("normalize")
    box = RandomErasing(probability=1.0, max_area=1 / 3, mode="pixel", device="cpu")
    with preserve_rng_state():
        for i, view in enumerate(views):
            for image, index in zip(view, batch.index.tolist(), strict=True):
                if mix_seed(0, step, index, i, 2) < ERASING * 2**63:
                    seed_all(0, step, index, i, 1)
                    box(image)
    lap("erase")
    rng = mix_rng(0, step)
    rng.random()
    lam = float(rng.beta(how.mixup or how.cutmix, how.mixup or how.cutmix))
    hot = smooth_one_hot(batch.targets.of(0), CLASSES, SMOOTHING)
    height, width = views[0].shape[-2:]
    if how.mixup:
        mixed = tuple(view * lam + view.flip(0) * (1 - lam) for view in views)
    else:
        top, bottom, left, right = draw_box(height, width, lam, rng)
        lam = 1 - (bottom - top) * (right - left) / (height * width)
        mixed = tuple(view.clone() for view in views)
        for view, before in zip(mixed, views, strict=True):
            view[:, :, top:bottom, left:right] = before.flip(0)[:, :, top:bottom, left:right]
    soft = hot * lam + hot.flip(0) * (1 - lam)
    lap("mix")
    return mixed, soft


WAYS = {"image by image": image_by_image, "ours": ours}


def timed(way: str, batch: Batch, how: MixConfig, step: int) -> tuple[dict[str, float], Made]:
    """Seconds of each part and of all, and what was made."""
    parts: dict[str, float] = {}
    began, used, last = time.perf_counter(), time.process_time(), time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        parts[name], last = now - last, now

    made = WAYS[way](batch, how, step, lap)
    return parts | {"all": time.perf_counter() - began, "processor": time.process_time() - used}, made


def times(batch: Batch, rounds: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for kind, how in KINDS.items():
        seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for step in range(rounds + 1):
            made = {}
            for way in WAYS:
                took, made[way] = timed(way, batch, how, step)
                if step:
                    seconds[way].append(took)
            (a, b), (c, d) = made.values()
            assert all(torch.equal(x, y) for x, y in zip((*a, b), (*c, d), strict=True)), "the numbers differ"
        ratios = [a["all"] / b["all"] for a, b in zip(*seconds.values(), strict=True)]
        used = [a["processor"] / b["processor"] for a, b in zip(*seconds.values(), strict=True)]
        found[kind] = {
            "seconds": {
                way: {part: round(statistics.median(r[part] for r in rows), 4) for part in rows[0]}
                for way, rows in seconds.items()
            },
            "ratio": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
            "ratio of processor time": round(statistics.median(used), 2),
        }
        print(kind, found[kind], flush=True)
    return found


def boxes(count: int, side: int) -> dict[str, float]:
    """p values of the areas, aspect ratios and centers of ``count`` boxes: ours against timm's, drawn by itself."""
    mine = [draw_place(side, side, random.Random(mix_seed(0, i))) for i in range(count)]
    ours = np.array([place for place in mine if place is not None])
    box = RandomErasing(probability=1.0, max_area=1 / 3, mode="pixel", device="cpu")
    random.seed(1)
    theirs = []
    for _ in range(count):
        image = box(torch.full((1, side, side), 9.0))[0] != 9
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        if len(rows):
            theirs.append((int(rows[0]), int(columns[0]), len(rows), len(columns)))
    other = np.array(theirs)
    facts = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 2] / b[:, 3],
        "center, down": lambda b: b[:, 0] + b[:, 2] / 2,
        "center, across": lambda b: b[:, 1] + b[:, 3] / 2,
    }
    return {name: round(float(ks_2samp(fact(ours), fact(other)).pvalue), 3) for name, fact in facts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "erase_mix.json")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    shape = (options.images, 3, options.side, options.side)
    views = tuple(torch.randint(256, shape, dtype=torch.uint8, generator=generator) for _ in range(3))
    target = torch.randint(CLASSES, (options.images,), generator=generator)
    batch = Batch(views, Labels(target), torch.arange(options.images))
    result: dict[str, object] = {
        "processor": machine(CPU),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "views": f"3 x {options.images} at {options.side} px",
        "times": times(batch, options.rounds),
        "p values of the boxes against timm's": boxes(2000, 64),
    }
    print(result)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
