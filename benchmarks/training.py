"""Training end to end on a CPU, from a folder of 500 x 375 JPEGs: ours against timm's transforms, mixing and loop.

    python benchmarks/training.py                                     # an hour on two quiet cores
    python benchmarks/training.py --models deit_small --batch 8 --steps 4 --rounds 1      # a short try
    python benchmarks/training.py --loss-steps 100                    # and whether both learn alike

RandAugment m9-mstd0.5-inc1, erasing 0.25, mixup 0.8 and CutMix 1.0, smoothing 0.1, AdamW, no moving average, two
workers. Ours is the recipe of the paper at ``train.precision=auto`` (bf16 where the chip multiplies it), by the loop
that ``anyres train`` runs. The peer is timm's training script in short: ``create_transform`` in torch's DataLoader,
``Mixup``, ``create_optimizer_v2``, forward, loss, backward, update, in float32 as it comes, and in bf16. timm has no
ResTv2 and no ResFormer: the peer trains ours by its loop; of ResFormer's three views it makes three forward passes and
one backward pass, of the labels' loss alone.

Images per second by the clock, in turns, the first steps of each turn left out; ratios within a round. ``step``: one
step on a batch that is there already, ours (``make_step``) against bare forward, backward and update of the same model
in the same precision. ``compile``: what ``train.compile=true`` gives, and the seconds of its first step.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader, Dataset

from anyres.deploy.predictor import machine
from anyres.flow import Batch, Labels
from anyres.models import create_model
from anyres.recipe import load_recipe
from anyres.runs.train import train_run
from anyres.tasks.classify import Classify
from anyres.training.objectives import ObjectiveConfig
from anyres.training.objectives.supervised import Supervised
from anyres.training.optim import build_optimizer
from anyres.training.parallel import autocast_dtype, build_accelerator
from anyres.training.plan import Plan, TrainConfig
from anyres.training.schedule import OptimConfig
from anyres.training.state import State
from anyres.training.step import make_step
from loader import _blacken, write_photographs

wiring: Any = importlib.import_module("anyres.runs.train")

WORKERS, WARM_UP, CLASSES = 2, 2, 2
RAND_AUGMENT, ERASING, SMOOTHING = "rand-m9-mstd0.5-inc1", 0.25, 0.1
LR, DECAY = 5e-4, 0.05


@dataclass(frozen=True)
class Contest:
    """Our recipe, the peer's model (None: ours in its loop), and the sides of the views."""

    recipe: str
    model: str
    theirs: str | None
    sides: tuple[int, ...] = (224,)


CONTESTS = {
    "deit_small": Contest("deit/small_224", "deit_small_patch16_224", "deit_small_patch16_224"),
    "restv2_tiny": Contest("restv2/tiny_224", "restv2_tiny", None),
    "resmlp_24": Contest("resmlp/s24_224", "resmlp_24", "resmlp_24_224"),
    "resformer_small": Contest("resformer/small_mr", "resformer_small", None, (224, 160, 128)),
}


@dataclass
class Turn:
    """What one turn of a way gave: when each step began and how long its batch took, and the losses."""

    began: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def facts(self, batch: int) -> dict[str, float]:
        """Images per second, and the share of the time that data takes."""
        took = self.began[-1] - self.began[WARM_UP]
        return {
            "images_per_s": batch * (len(self.began) - 1 - WARM_UP) / took,
            "data_share": sum(self.waited[WARM_UP:-1]) / took,
        }


class Enough(Exception):
    """All steps of a turn are made."""


def timed(batches: Iterator[Any], turn: Turn, steps: int) -> Generator[Any]:
    """The same batches, with their times; raises Enough after ``steps``."""
    for made in range(steps + 1):
        turn.began.append(time.perf_counter())
        if made == steps:
            raise Enough
        batch = next(batches)
        turn.waited.append(time.perf_counter() - turn.began[-1])
        yield batch


def ours(contest: Contest, folder: Path, batch: int, steps: int, *more: str) -> Turn:
    turn, as_it_is = Turn(), wiring.training_batches

    def hooked(*given: Any) -> Generator[Batch]:
        batches = as_it_is(*given)
        try:
            yield from timed(batches, turn, steps)
        finally:
            batches.close()

    values = [
        *(f"data.source={folder}", f"data.batch_size={batch}", f"data.workers={WORKERS}", "data.repeats=1"),
        *("train.ema_decay=null", "train.eval_every=0", "train.epochs=1000", "train.checkpoint_every=1000000"),
        *(f"train.threads={torch.get_num_threads()}", "train.log_every=1", f"optim.lr={LR}", "optim.lr_batch=null"),
        *("optim.name=adamw", "optim.schedule=constant", "optim.warmup_epochs=0", f"augment.erasing={ERASING}"),
        *("mix.mixup=0.8", "mix.cutmix=1.0", f"mix.smoothing={SMOOTHING}", f"augment.rand_augment={RAND_AUGMENT}"),
    ]
    wiring.training_batches = hooked
    try:
        with tempfile.TemporaryDirectory() as run:
            try:
                train_run(load_recipe(contest.recipe, [*values, *more]), Path(run), report=False)
            except Enough:
                lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
                turn.losses = [line["loss"] for line in lines if "loss" in line]
    finally:
        wiring.training_batches = as_it_is
    return turn


class Photographs(Dataset):
    """As timm's training set: Pillow, then its transform; one for each view."""

    def __init__(self, folder: Path, sides: tuple[int, ...]) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))
        how = {"is_training": True, "interpolation": "bicubic", "auto_augment": RAND_AUGMENT}
        self.transforms = [
            create_transform(side, re_prob=ERASING, re_mode="pixel", use_prefetcher=False, **how) for side in sides
        ]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[list[torch.Tensor], int]:
        image = Image.open(self.paths[i]).convert("RGB")
        return [transform(image) for transform in self.transforms], int(self.paths[i].parent.name[-1])


def theirs(contest: Contest, folder: Path, batch: int, steps: int, dtype: torch.dtype | None, seed: int = 0) -> Turn:
    torch.manual_seed(seed)
    model = model_of(contest).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=LR, weight_decay=DECAY)
    loss_of, mixup = SoftTargetCrossEntropy(), Mixup(0.8, 1.0, label_smoothing=SMOOTHING, num_classes=CLASSES)
    data = Photographs(folder, contest.sides)
    loader = DataLoader(data, batch, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True)

    def for_ever() -> Iterator[Any]:
        while True:
            yield from loader

    turn = Turn()
    try:
        for views, target in timed(for_ever(), turn, steps):
            mixed = [mixup(view, target) for view in views]
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = torch.stack([loss_of(model(view), soft) for view, soft in mixed]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            turn.losses.append(loss.item())
    except Enough:
        return turn
    raise AssertionError("unreachable")


def model_of(contest: Contest) -> torch.nn.Module:
    if contest.theirs is None:
        return create_model(contest.model, CLASSES, drop_path=0.1)
    return timm.create_model(contest.theirs, num_classes=CLASSES, drop_path_rate=0.1)


def step_alone(contest: Contest, batch: int, rounds: int) -> dict[str, float]:
    """Seconds of ``make_step`` and of bare forward, backward and update, in turn, and their ratio."""
    torch.manual_seed(0)
    accelerator, dtype = build_accelerator("auto"), autocast_dtype("auto")
    optim = OptimConfig(lr=1e-6, min_lr=0.0, warmup_epochs=0.0)
    model = create_model(contest.model, CLASSES)
    objective = Supervised(model, ObjectiveConfig(), Classify().loss)
    optimizer = build_optimizer(model, optim, model.no_weight_decay())
    state = State(model, None, accelerator.prepare(optimizer))
    student = accelerator.prepare_model(objective.student)
    plan = Plan(10**6, 10**3, batch, TrainConfig(), optim)
    views = tuple(torch.randn(batch, 3, side, side) for side in contest.sides)
    given = Batch(views, Labels(torch.randint(CLASSES, (batch,))), torch.arange(batch))

    def bare() -> None:
        optimizer.zero_grad(set_to_none=True)
        for term in objective.terms(model_under(dtype, objective.student), given):
            term.loss.backward()
        optimizer.step()

    ways: dict[str, Callable[[], object]] = {
        "bare": bare,
        "ours": lambda: make_step(accelerator, student, objective, state, given, plan),
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, made in ways.items():
            start = time.perf_counter()
            made()
            if turn:
                found[way].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(found["bare"], found["ours"], strict=True))
    return {way: round(statistics.median(each), 4) for way, each in found.items()} | {"ratio": round(ratio, 3)}


def model_under(dtype: torch.dtype | None, student: torch.nn.Module) -> Callable[[torch.Tensor], Any]:
    def call(view: torch.Tensor) -> Any:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            return student(view)

    return call


def contested(contest: Contest, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    ways: dict[str, Callable[[], Turn]] = {
        "ours": lambda: ours(contest, folder, options.batch, options.steps),
        "timm, fp32": lambda: theirs(contest, folder, options.batch, options.steps, None),
        "timm, bf16": lambda: theirs(contest, folder, options.batch, options.steps, torch.bfloat16),
    }
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(options.rounds):
        rounds.append({way: made().facts(options.batch) for way, made in ways.items()})
        print({way: round(facts["images_per_s"], 2) for way, facts in rounds[-1].items()}, flush=True)
    result: dict[str, Any] = {
        way: {key: round(statistics.median(each[way][key] for each in rounds), 3) for key in rounds[0][way]}
        for way in ways
    }
    for way in ("timm, fp32", "timm, bf16"):
        ratios = [each["ours"]["images_per_s"] / each[way]["images_per_s"] for each in rounds]
        result[f"ours by {way}"] = {
            "ratio": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    result["step"] = step_alone(contest, options.batch, 2 * options.rounds)
    if options.compile:
        turn = ours(contest, folder, options.batch, options.steps, "train.compile=true")
        first = turn.began[1] - turn.began[0]
        result["compile"] = {"first_step_s": round(first, 1), **turn.facts(options.batch)}
    if options.loss_steps:
        result["losses"] = losses(contest, folder, options)
    return result


def losses(contest: Contest, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The mean loss of the last fifth of so many steps: ours and the peer's, and both from another seed."""
    count = options.loss_steps
    made = {
        f"{way}, seed {seed}": turn
        for seed in (0, 1)
        for way, turn in (
            ("ours", ours(contest, folder, options.batch, count, f"train.seed={seed}")),
            ("timm", theirs(contest, folder, options.batch, count, autocast_dtype("auto"), seed)),
        )
    }
    return {way: round(statistics.mean(turn.losses[-count // 5 :]), 4) for way, turn in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--loss-steps", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    options = parser.parse_args()
    _blacken()
    result: dict[str, Any] = {
        "processor": machine(torch.device("cpu")),
        "versions": {module.__name__: module.__version__ for module in (torch, timm)},
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "workers": WORKERS,
        "load_average_before": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), 500, 375, options.images)
        for model in options.models:
            result[model] = contested(CONTESTS[model], Path(name), options)
            print(model, result[model], flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
