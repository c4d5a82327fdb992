"""What int8 gives here: its speed beside our own bf16 (float32 without bf16), and the accuracy that it costs.

    python benchmarks/int8.py

Speed: each model at 224 px, 8 at a time, folded, OpenVINO in both precisions (int8 by NNCF, post-training), in turn;
weights and calibration images are random, which speed does not depend on. Accuracy: a small model of four families
trained here on Groceries' 14 classes at 96 px for the same epochs, its ranges read from 128 training images; top-1 of
the 661 test images in per cent, by eager float32, bf16 and int8, and how many answers differ.
A configuration that cannot be made is kept as its one line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anyres.config import UserError
from anyres.deploy.engines.backend import Backend
from anyres.deploy.engines.engine import Precision
from anyres.deploy.predictor import Predictor
from anyres.deploy.timing import Job, measure
from anyres.evaluation.speed import macs
from anyres.flow import Size, has_bf16
from anyres.models import create_model
from anyres.recipe import build_recipe
from anyres.runs.bench import COMPARED
from anyres.runs.cascade import batches, preprocessing
from anyres.runs.inputs import open_images
from anyres.runs.opened import open_run
from anyres.runs.train import train_run

FLOAT: Precision = "bf16" if has_bf16(torch.device("cpu")) else "fp32"
SIZE, BATCH = Size(224, 224), 8
SIDE, CALIBRATION = Size(96, 96), 128
SMALL: dict[str, dict[str, Any]] = {
    "restv2_nano": {},
    "resformer_nano": {},
    "resmlp_nano": {"any_size": True},
    "deit3_tiny": {"depth": 6, "img_size": 96},
}


def speed(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """images/s of the fastest float precision and of int8, and their ratio."""
    make = partial(create_model, name)
    flops = 2 * macs(make(), SIZE)
    images = tuple(torch.randn(BATCH, 3, *SIZE, generator=torch.Generator().manual_seed(i)) for i in range(2))
    precisions: tuple[Precision, ...] = (FLOAT, "int8")
    choices = {precision: Backend("openvino", precision) for precision in precisions}
    jobs = [Job(name, make, True, choice, SIZE, BATCH, flops, None, images) for choice in choices.values()]
    rows, failed, matrix = measure(jobs, rounds=rounds, seconds=seconds, progress=print)
    facts: dict[str, Any] = {"matrix GFLOP/s": matrix, "rows": [row.facts() for row in rows]}
    if failed:
        return facts | {"failed": [f"{each.job.backend}: {each.reason}" for each in failed]}
    each = [b / a for a, b in zip(*(row.rounds for row in rows), strict=True)]
    ratio = {"ratio": round(statistics.median(each), 3), "range": [round(min(each), 3), round(max(each), 3)]}
    return facts | ratio


def accuracy(name: str, epochs: int, work: Path) -> dict[str, Any]:
    """Top-1 of one trained model by precision."""
    recipe = build_recipe(
        {
            "model": {"name": name, **SMALL[name]},
            "data": {"source": "groceries:fine", "train_split": "trainval", "eval_split": "test", "cache_side": 192},
            "views": {"sizes": [SIDE.height]},
            "augment": {"crop_scale": [0.4, 1.0], "interpolation": "bilinear"},
            "optim": {"lr": 1e-3, "warmup_epochs": 3, "weight_decay": 0.05, "clip_norm": 5.0},
            "train": {"epochs": epochs, "ema_decay": 0.99, "eval_every": 0, "log_every": 50},
            "evaluate": {"sizes": [SIDE.height], "crop": 0.875},
        },
        name,
    )
    folder = work / f"{name}-{epochs}"
    train_run(recipe, folder)
    trained = open_run(folder)
    training = open_images(recipe, "trainval")
    chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:CALIBRATION].tolist()
    pictures = [training[i].image.contiguous() for i in chosen]
    answers: dict[str, torch.Tensor] = {}
    found: dict[str, Any] = {"top1": {}}
    for text in ("eager:fp32", f"openvino:{FLOAT}", "openvino:int8"):
        try:
            how = preprocessing(trained, SIDE)
            predictor = Predictor(trained.backbone, text, SIDE, batch=BATCH, preprocessing=how, calibration=pictures)
        except UserError as error:
            found["failed"] = str(error)
            continue
        shown = batches(trained, trained.images(), SIDE)
        pairs = [(predictor.forward(b.views[0]).argmax(1), b.targets.of(0)) for b in shown]
        answers[text] = torch.cat([answer for answer, _ in pairs])
        target = torch.cat([labels for _, labels in pairs])
        found["top1"][text] = round(100 * (answers[text] == target).double().mean().item(), 2)
    base = answers["eager:fp32"]
    found["answers that differ"] = {text: int((each != base).sum()) for text, each in answers.items()}
    return found | {"n": len(base), "epochs": epochs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(COMPARED), choices=COMPARED)
    parser.add_argument("--small", nargs="*", default=list(SMALL), choices=list(SMALL))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path(".bench_data/int8"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8.json")
    options = parser.parse_args()
    facts = json.loads(options.out.read_text()) if options.out.exists() else {"speed": {}, "accuracy": {}}
    facts["torch"] = torch.__version__
    for name in options.models:
        facts["speed"][name] = speed(name, options.rounds, options.seconds)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    for name in options.small:
        facts["accuracy"][name] = accuracy(name, options.epochs, options.work)
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    for part in ("speed", "accuracy"):
        for name, found in facts[part].items():
            print(part, name, {key: value for key, value in found.items() if key not in ("rows", "matrix GFLOP/s")})


if __name__ == "__main__":
    main()
