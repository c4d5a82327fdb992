"""A three-view ResFormer training step on a CPU: ours against the plain way, in turn on the same batches.

    python benchmarks/train_step.py

Plain: float32, three forward passes, one joint backward pass, torch's AdamW as it comes. Ours: bf16 autocast where the
chip has it, each view back-propagated before the next one runs, fused AdamW. Time: resformer_small, 8 images at 224,
160 and 128 px, medians of steps taken in turn. Memory: each way in a process of its own, the peak of one step above
what was held. Curve: resformer_nano on Groceries, 300 steps of 16 photographs at 96, 64 and 48 px; both ways from one
seed, and the plain way from another seed for the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from anyres.data.augment_config import AugmentConfig
from anyres.data.loader import LoaderOptions, Steps, train_batches
from anyres.data.mix import mix, mix_rng, normalize
from anyres.data.mix_config import MixConfig
from anyres.data.views_config import ViewsConfig
from anyres.flow import Batch, Labels
from anyres.models import create_model
from anyres.recipe import build_recipe
from anyres.runs.inputs import open_images
from anyres.tasks.classify import Classify
from anyres.training.objectives import ObjectiveConfig
from anyres.training.objectives.supervised import Supervised
from anyres.training.parallel import autocast_dtype

OBJECTIVE = ObjectiveConfig(consistency="smooth_l1")
CPU = torch.device("cpu")
SIZES, IMAGES = (224, 160, 128), 8
WAYS = ("plain", "ours")
Step = Callable[[Batch], float]


def make_step(way: str, name: str, classes: int, seed: int) -> Step:
    """A model with its optimiser: batch -> loss, and one update."""
    torch.manual_seed(seed)
    model = create_model(name, classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05, fused=way == "ours" or None)
    objective = Supervised(model, OBJECTIVE, Classify().loss)
    dtype = autocast_dtype("auto") if way == "ours" else None

    def step(batch: Batch) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            made = objective.terms(objective.student, batch)
            if way == "plain":
                loss = torch.stack([term.loss for term in made]).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                total = loss.detach()
            else:
                total = torch.zeros(())
                for term in made:
                    term.loss.backward()  # type: ignore[no-untyped-call]
                    total += term.loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return float(total)

    return step


def random_batch(classes: int = 1000) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(IMAGES, 3, side, side, generator=generator) for side in SIZES)
    return Batch(views, Labels(torch.randn(IMAGES, classes, generator=generator).softmax(-1)), torch.arange(IMAGES))


def times(rounds: int) -> dict[str, object]:
    """Seconds of a step, the ways in turn."""
    steps, batch = {way: make_step(way, "resformer_small", 1000, 0) for way in WAYS}, random_batch()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for i in range(rounds + 2):
        for way, step in steps.items():
            start = time.perf_counter()
            step(batch)
            if i >= 2:
                found[way].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(found["plain"], found["ours"], strict=True)]
    return {
        "seconds": {way: round(statistics.median(each), 3) for way, each in found.items()},
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def memory() -> dict[str, float]:
    """Peak MiB of one step above what was held before, each way in its own process, and their ratio."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = {}
    for way in WAYS:
        words = [sys.executable, __file__, "--peak", way]
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
        found[way] = float(done.stdout)
    return {way: round(mib, 1) for way, mib in found.items()} | {"ratio": round(found["ours"] / found["plain"], 3)}


def peak(way: str) -> float:
    """In this process: the peak of one step above what the model holds, in MiB."""
    step, batch = make_step(way, "resformer_small", 1000, 0), random_batch()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024


def photographs(steps: int, seed: int) -> Iterator[Batch]:
    recipe = build_recipe(
        {"model": {"name": "resformer_nano"}, "data": {"source": "groceries:fine", "cache_side": 128}}, "curve"
    )
    images = open_images(recipe, "trainval", training=True)
    loaded = train_batches(
        images,
        images.source.records,
        Classify(images.source.classes),
        AugmentConfig(crop_scale=(0.4, 1.0), interpolation="bilinear"),
        ViewsConfig(sizes=(96, 64, 48)),
        Steps(16, seed=seed, start=0, stop=steps),
        options=LoaderOptions(workers=0),
    )
    for step, raw in enumerate(loaded):
        batch = normalize(raw, recipe.data.mean, recipe.data.std, CPU)
        smooth = MixConfig(smoothing=0.1)
        views, target = mix(batch.views, batch.targets.of(0), 14, smooth, mix_rng(seed, step, 0))
        yield Batch(views, Labels(target), batch.index)


def curves(steps: int) -> dict[str, object]:
    """Mean loss of every 50 steps: plain, ours, and plain from another seed."""
    arms = {"plain": ("plain", 0), "ours": ("ours", 0), "plain, another seed": ("plain", 1)}
    found: dict[str, list[float]] = {}
    for name, (way, seed) in arms.items():
        step = make_step(way, "resformer_nano", 14, seed)
        losses = [step(batch) for batch in photographs(steps, seed)]
        found[name] = [round(statistics.mean(losses[i : i + 50]), 4) for i in range(0, steps, 50)]

    def apart(name: str) -> float:
        return round(max(abs(a - b) for a, b in zip(found["plain"], found[name], strict=True)), 4)

    return found | {"ours from plain": apart("ours"), "the other seed from plain": apart("plain, another seed")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    parser.add_argument("--peak", choices=WAYS, help="what a process of the memory study does")
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak))
        return
    result: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for name, part in (("memory MiB", memory), ("time", lambda: times(options.rounds))):
        result[name] = part()
        print(name, result[name], flush=True)
    result["curve"] = curves(options.steps)
    print(result["curve"])
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
