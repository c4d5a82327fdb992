"""Whether exported ONNX files answer as their models do: ten families, two engines, six shapes of images, four sizes.

    python benchmarks/export.py [FAMILY ...]
    python benchmarks/export.py --executorch [FAMILY ...]

Every model is small. So that its answers move with the image, its LayerScale is set to 0.5 and it is trained for some
steps on photos of groceries. Then photos from their files, in batches of one to three, go through the file and, decoded
and prepared by our own evaluation, through the model itself in PyTorch. What is kept is the largest difference.

With ``--executorch`` each model is lowered for ExecuTorch instead, for every size from 33 to 512 px, and, where it
cannot be, or answers otherwise, for one size; its own runtime is asked at each size with photos (minutes a family).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import anyres
from anyres.data.augment import resize
from anyres.data.decode import decode
from anyres.data.sources import open_source
from anyres.deploy.export.certificate import Referee, Trial, check, motion
from anyres.deploy.export.dial import Preparation
from anyres.deploy.export.executorch import open_executorch, program, tried
from anyres.deploy.export.files import save_graph
from anyres.deploy.export.graph import free_graph
from anyres.deploy.export.runtimes import open_onnxruntime, open_openvino
from anyres.flow import Size
from anyres.models.contract import IMAGENET_MEAN, IMAGENET_STD, Backbone
from anyres.storage import write_text

RESULTS = Path(__file__).parent / "results" / "export.json"
PHONES = RESULTS.with_name("executorch.json")
_VIT = {"dim": 64, "depth": 4, "heads": 2, "patch_size": 8, "img_size": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ResT": ("rest_lite", {"dims": (16, 32, 64, 128)}),
    "ResTv2": ("restv2_nano", {}),
    "ResFormer": ("resformer_nano", {}),
    "ResMLP": ("resmlp_nano", {"any_size": True}),
    "DeiT": ("deit_tiny_patch16_224", _VIT),
    "DeiT III": ("deit_tiny_patch16_LS", _VIT),
    "Three Things": ("deit_small_patch16_18x2", _VIT),
    "CaiT": ("cait_XXS24_224", _VIT),
    "PatchConvNet": ("S60", {"dim": 64, "depth": 4}),
    "DINO": ("vit_tiny", _VIT),
}
SIZES = (Size(64, 64), Size(112, 112), Size(73, 47), Size(59, 131))
SHAPES = (None, Size(97, 130), Size(600, 451), Size(131, 97), Size(224, 224), Size(50, 340))
"""Of images: as the file has it, and others that are resized from it."""
STEPS, TRAINED_AT = 30, (64, 48)
HOW = Preparation(IMAGENET_MEAN, IMAGENET_STD)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    words.add_argument("families", nargs="*", metavar="FAMILY", help="all if none is given")
    words.add_argument("--executorch", action="store_true", help="lower for ExecuTorch instead")
    given = words.parse_args()
    wanted: Sequence[str] = given.families or list(FAMILIES)
    warnings.simplefilter("ignore")  # of exporters, about themselves
    if given.executorch:
        for family in wanted:
            lower(family)
        return
    known: dict[str, Any] = json.loads(RESULTS.read_text())["families"] if RESULTS.is_file() else {}
    for family in wanted:
        start = time.perf_counter()
        known[family] = row(family)
        print(f"{family}: {known[family]} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        facts = {
            "command": "python benchmarks/export.py",
            "versions": {package: version(package) for package in ("torch", "onnx", "onnxruntime", "openvino")},
            "sizes": [str(size) for size in SIZES],
            "images": ["as the file has it", *(str(shape) for shape in SHAPES[1:])],
            "weights": f"LayerScale 0.5, {STEPS} steps of AdamW on groceries at {TRAINED_AT[0]} and {TRAINED_AT[1]} px",
            "families": known,
        }
        write_text(RESULTS, json.dumps(facts, indent=1))


def row(family: str) -> dict[str, Any]:
    """One family: each engine's largest differences, over all images and sizes."""
    name, referee, loss = taught(family)
    model = referee.model
    trials = [Trial(images, size, referee.ask(images, size)) for size in SIZES for images in batches()]
    spread = max(float((each.truth - each.truth.mean(1, keepdim=True)).abs().max()) for each in trials)
    found: dict[str, Any] = {"model": name, "loss": round(loss, 3), "largest answer above the mean": round(spread, 3)}
    found["logits move by"] = round(min(motion([t.truth for t in trials if t.size == s], "softmax") for s in SIZES), 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_graph(free_graph(model, HOW, "softmax"), path, {})
        for engine, opened in (("onnxruntime", open_onnxruntime), ("openvino", open_openvino)):
            found[engine] = compare(engine, opened(path), trials)
    return found


def taught(family: str) -> tuple[str, Referee, float]:
    """A family's small model by name, trained for some steps, and its last loss."""
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    model = anyres.create_model(name, 5, **options)
    loss = train(model)
    return name, Referee(model.eval().requires_grad_(False), HOW, "softmax"), loss


def lower(family: str) -> None:
    """How far ExecuTorch goes with one family: free sides, else one size; kept beside those of other families."""
    name, referee, _ = taught(family)
    found: dict[str, Any] = {"model": name}
    photos = batches()[1]
    for kind, size in (("free", None), ("fixed", SIZES[0])):
        start = time.perf_counter()
        sizes = (size,) if size else tried(SIZES)
        trials = [Trial(photos, each, referee.ask(photos, each)) for each in sizes]
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.pte"
                path.write_bytes(program(referee, size, {}))
                ask = open_executorch(path, referee)
                checks = check("the program", "executorch", ask, trials, "softmax")
                found[kind] = {
                    "sizes": [str(each) for each in sizes],
                    "probability": float(f"{max(each.probability for each in checks):.2g}"),
                    "logits move by": round(min(each.motion for each in checks), 4),
                    "megabytes": round(path.stat().st_size / 1e6, 2),
                }
        except anyres.UserError as error:
            found[kind] = {"refused": str(error)}
        found[kind]["seconds"] = round(time.perf_counter() - start)
        print(f"{family}, {kind}: {found[kind]}", file=sys.stderr)
        known: dict[str, Any] = json.loads(PHONES.read_text())["families"] if PHONES.is_file() else {}
        facts = {
            "command": "python benchmarks/export.py --executorch",
            "versions": {package: version(package) for package in ("torch", "executorch")},
            "families": known | {family: found},
        }
        write_text(PHONES, json.dumps(facts, indent=1))
        if "refused" not in found[kind]:
            return


def compare(engine: str, ask: Callable[[Tensor, Size], Tensor], trials: Sequence[Trial]) -> dict[str, Any]:
    """Largest differences, how many trials are above 1e-4, and how many images have another first class."""
    off = [float((ask(each.images, each.size) - each.truth).abs().max()) for each in trials]
    others = sum(int((ask(t.images, t.size).argmax(1) != t.truth.argmax(1)).sum()) for t in trials)
    try:
        check("the file", engine, ask, trials, "softmax")
        passed = "passed"
    except anyres.UserError as error:
        passed = str(error)
    return {
        "probability": float(f"{max(off):.2g}"),
        "trials": len(trials),
        "beyond 1e-4": sum(each > 1e-4 for each in off),
        "another first class": others,
        "certificate": passed,
    }


def batches() -> list[Tensor]:
    """Photos uint8 (b, h, w, 3) of every shape, one to three of them."""
    records = open_source("groceries", "val").records
    photos = [decode(records[i]).image for i in range(0, 3 * 7, 7)]
    found = []
    for number, shape in enumerate(SHAPES):
        some = photos[: 1 + number % 3] if shape else photos[:1]
        each = [resize(photo, shape) if shape else photo for photo in some]
        found.append(torch.stack([photo.permute(1, 2, 0) for photo in each]).contiguous())
    return found


def train(model: Backbone) -> float:
    """A few steps, at two sizes; the last loss."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "gamma" in key.split(".")[-1]:
                parameter.fill_(0.5)
    records = open_source("groceries", "train").records
    chosen = [records[i] for i in range(0, len(records), max(1, len(records) // 64))][:64]
    photos = torch.stack([resize(decode(record).image, Size(64, 64)) for record in chosen]).float() / 127.5 - 1
    labels = torch.tensor([int(record.target) for record in chosen])  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    value = 0.0
    for step in range(STEPS):
        side = TRAINED_AT[step % len(TRAINED_AT)]
        some = torch.arange(16) + 16 * (step % 4)
        views = torch.nn.functional.interpolate(photos[some], size=(side, side), mode="bilinear")
        loss = torch.nn.functional.cross_entropy(model(views), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
    return value


if __name__ == "__main__":
    main()
