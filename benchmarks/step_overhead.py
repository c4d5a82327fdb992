"""What a step of the loop costs beyond forward, backward and update, and whether that grows with the data set.

    OMP_NUM_THREADS=1 python benchmarks/step_overhead.py
    OMP_NUM_THREADS=1 python benchmarks/step_overhead.py --steps 40 --rounds 3      # a short try

A nano model, 2 images at 32 px. ``bare``: zero_grad, the objective's terms, backward, the optimizer's step. ``loop``:
``anyres.training.loop.train`` in a run folder, with its checks, rates, records, bar and moving average, and batches
that are there already; no scoring, and a checkpoint at the end alone, which is timed by itself. Milliseconds of the
main thread's processor time, and by the clock; the ways in turn; of each place in a cycle of ten steps, of which one is
recorded, the fastest, so that busy neighbors hardly count, and the medians beside it. ``data``: milliseconds by which a
batch of 2 is loaded from a set of 240 images and from one of 240,000 (the same files, named a thousand times).
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import itertools
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.loader import LoaderOptions, Steps, train_batches
from anyres.data.sources import open_source
from anyres.data.targets import LabelReader
from anyres.data.views_config import ViewsConfig
from anyres.deploy.predictor import machine
from anyres.flow import Batch, Labels
from anyres.models import create_model
from anyres.tasks.classify import Classify
from anyres.training import checkpoint
from anyres.training.loop import Callbacks, train
from anyres.training.objectives import ObjectiveConfig
from anyres.training.objectives.supervised import Supervised
from anyres.training.optim import build_optimizer
from anyres.training.parallel import build_accelerator
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State, build_ema

MODEL, CLASSES, IMAGES, SIDE = "resmlp_nano", 10, 2, 32
RECORDED = 10  # steps from one record of metrics.jsonl to the next
WARM_UP = 5  # steps of each round that are not counted
MOST_MS = 1.5
Times = list[tuple[float, float]]  # of each step: the thread's and the clock's seconds so far


def one_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    view = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator)
    return Batch((view,), Labels(torch.randint(CLASSES, (IMAGES,), generator=generator)), torch.arange(IMAGES))


class Trial:
    """A model, its objective and optimizer, as a run has them."""

    def __init__(self, average: bool) -> None:
        torch.manual_seed(0)
        self.accelerator = build_accelerator("fp32")
        model = create_model(MODEL, CLASSES, img_size=SIDE)
        self.optim = OptimConfig(lr=1e-4, warmup_epochs=0.0)
        self.objective = Supervised(model, ObjectiveConfig(), Classify().loss)
        optimizer = self.accelerator.prepare(build_optimizer(model, self.optim, model.no_weight_decay()))
        self.state = State(model, build_ema(model, 0.999 if average else None), optimizer)
        self.batch = one_batch()

    def bare(self, steps: int) -> Times:
        """Forward, backward and update alone."""
        objective, found = self.objective, []
        optimizer: Any = self.state.optimizer
        optimizer = optimizer.optimizer  # without accelerate's wrapper
        objective.student.train()
        for _ in range(steps + 1):
            found.append((time.thread_time(), time.perf_counter()))
            optimizer.zero_grad(set_to_none=True)
            for term in objective.terms(objective.student, self.batch):
                term.loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return found

    def loop(self, steps: int, run: Path) -> Times:
        """The same by the loop, from the step where it is."""
        found: Times = []
        self.state.progress.step = 0  # the cycle of records begins anew
        last = steps + 1

        def batches() -> Generator[Batch]:
            while True:
                found.append((time.thread_time(), time.perf_counter()))
                yield self.batch

        config = TrainConfig(epochs=1, eval_every=0, checkpoint_every=10**9, threads=torch.get_num_threads())
        plan = Plan(last, last, IMAGES, config, self.optim)
        callbacks = Callbacks(lambda _: {})
        with contextlib.closing(batches()) as made:
            train(self.accelerator, self.objective.student, self.objective, self.state, made, plan, run, callbacks)
        self.state.progress.unscored = False
        return found


def of_steps(found: Times) -> list[list[float]]:
    """Milliseconds of each step after the warm-up, of the thread and by the clock, by its place between two records."""
    taken = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(found)][WARM_UP:]
    return [[1000 * each[i] for each in taken] for i in range(2)]


def undisturbed(steps: Sequence[float]) -> float:
    """The mean of a cycle of ``RECORDED`` steps, each place at its fastest: neighbors only ever make it slower."""
    return statistics.mean(min(steps[place::RECORDED]) for place in range(RECORDED))


def loop_overhead(average: bool, steps: int, rounds: int) -> dict[str, object]:
    steps -= steps % RECORDED  # so that every turn begins at the same place of the cycle
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        trial = Trial(average)
        bare: list[list[float]] = [[], []]
        loop: list[list[float]] = [[], []]
        for _ in range(rounds):
            for kept, made in ((bare, trial.bare(steps + WARM_UP)), (loop, trial.loop(steps + WARM_UP, run))):
                for i, each in enumerate(of_steps(made)):
                    kept[i] += each[:steps]
        start = time.thread_time()
        checkpoint.save(run, trial.state)
        saved = 1000 * (time.thread_time() - start)
    return {
        "bare_ms": round(undisturbed(bare[0]), 3),
        "loop_ms": round(undisturbed(loop[0]), 3),
        "overhead_ms": round(undisturbed(loop[0]) - undisturbed(bare[0]), 3),
        "overhead_of_medians_ms": round(statistics.median(loop[0]) - statistics.median(bare[0]), 3),
        "overhead_by_the_clock_ms": round(undisturbed(loop[1]) - undisturbed(bare[1]), 3),
        "checkpoint_ms": round(saved, 1),
    }


def loading(steps: int, rounds: int) -> dict[str, object]:
    """Milliseconds of a batch, from a small set and from a large one."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for i in range(300):
            path = Path(folder) / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(path)
        small = open_source(folder, "train")
        sources = {"small": small, "large": replace(small, records=small.records * 1000)}
        found: dict[str, list[float]] = {name: [] for name in sources}
        for turn in range(rounds + 1):
            for name, source in sources.items():
                batches = train_batches(
                    DecodedImages(source, None, 0.0),
                    source.records,
                    LabelReader(),
                    AugmentConfig(),
                    ViewsConfig(sizes=(SIDE,)),
                    Steps(IMAGES, seed=0, start=0, stop=steps + WARM_UP),
                    options=LoaderOptions(workers=0),
                )
                for _ in range(WARM_UP):
                    next(batches)
                start = time.thread_time()
                count = sum(1 for _ in batches)
                if turn:
                    found[name].append(1000 * (time.thread_time() - start) / count)
    more = [large - small for small, large in zip(found["small"], found["large"], strict=True)]
    images = {name: len(source.records) for name, source in sources.items()}
    medians = {f"{name}_ms": round(statistics.median(each), 3) for name, each in found.items()}
    return {"images": images, **medians, "difference_ms": round(statistics.median(more), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="show where the loop's time goes instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_overhead.json")
    options = parser.parse_args()
    if options.profile:
        trial = Trial(average=True)
        with tempfile.TemporaryDirectory() as folder:
            trial.loop(20, Path(folder))
            with cProfile.Profile() as profile:
                trial.loop(options.steps, Path(folder))
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
        return
    result: dict[str, object] = {
        "processor": machine(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "model": f"{MODEL}, {IMAGES} images at {SIDE} px",
        "at_most_ms": MOST_MS,
    }
    for name, average in (("without a moving average", False), ("with a moving average", True)):
        result[name] = loop_overhead(average, options.steps, options.rounds)
        print(name, result[name], flush=True)
    result["data"] = loading(options.steps, options.rounds)
    print("data", result["data"], flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
