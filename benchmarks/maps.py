"""Do maps show what a model looks at? Small models learn pictures with one informative corner; how much lies there?

    OMP_NUM_THREADS=1 python benchmarks/maps.py [--families deit cait ...] [--seconds 60]

Each picture is noise but for stripes or checks, which make its class, in one of its corners: a quarter of the side. A
model of each family is trained for a minute, and each method's maps of new pictures are measured: the share of the
mass in the positions that touch the corner, beside these positions' share of the area (what an even map has), and how
often the highest value lies there; ``grad_cam`` is captum's Grad-CAM at the layer of ``cam``. Families that are asked
for replace their rows of benchmarks/results/maps.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.maps.planted import CLASSES, Pictures, Share, pictures, share_in_corner, share_of, train

from anyres.config import need
from anyres.maps.gradients import cam, layer_as_map
from anyres.maps.look import METHODS
from anyres.models import create_model
from anyres.models.contract import Backbone

RESULTS = Path(__file__).parent / "results" / "maps.json"
VIT: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 2, "patch_size": 8, "img_size": 64}
REST: dict[str, Any] = {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)}


class Planted(NamedTuple):
    name: str
    options: dict[str, Any]
    side: int = 64
    steps: int = 400
    batch: int = 64


FAMILIES = {
    "rest": Planted("rest_lite", REST, 128, 250, 32),
    "restv2": Planted("restv2_nano", REST, 128, 250, 32),
    "resformer": Planted("resformer_nano", {"dim": 64, "depth": 4, "heads": 2, "patch_size": 8}),
    "resmlp": Planted("resmlp_nano", {"dim": 64, "depth": 4}),
    "deit": Planted("deit_tiny_patch16_224", VIT),
    "deit_distilled": Planted("deit_tiny_distilled_patch16_224", VIT),
    "deit3": Planted("deit_tiny_patch16_LS", VIT),
    "threethings": Planted("deit_small_patch16_18x2", VIT | {"depth": 2}),
    "cait": Planted("cait_XXS24_224", VIT | {"init_scale": 0.1}),
    "patchconvnet": Planted("S60", {"dim": 64, "depth": 4, "init_scale": 0.1}),
    "patchconvnet_multi": Planted("S60_multi", {"dim": 64, "depth": 4, "init_scale": 0.1}),
    "dino": Planted("vit_tiny", VIT),
    "timm_vit": Planted("timm:test_vit", {"img_size": 64}),
    "timm_convnext": Planted("timm:test_convnext", {}),
}


def grad_cam(model: Backbone, seen: Pictures) -> Share:
    """captum's Grad-CAM at the layer that ``cam`` takes, for comparison."""
    _, place = cam(model, seen.x[:1], seen.y[:1])
    with torch.no_grad():
        answered = model(seen.x).argmax(1)
    with layer_as_map(model, place, seen.x) as probe:
        method = need("captum.attr", extra="maps").LayerGradCam(model, probe)
        maps = method.attribute(seen.x.clone().requires_grad_(), target=answered)
    return share_of(list(maps.detach()[:, 0].clamp_min(0)), int(model.feature_info[place]["reduction"]), seen)


def measure(family: str, seconds: float, images: int) -> dict[str, Any]:
    """A row: accuracy on new pictures, and each method's share."""
    planted = FAMILIES[family]
    torch.manual_seed(0)
    start = time.process_time()
    model = train(
        create_model(planted.name, CLASSES, **planted.options), planted.side, planted.steps, planted.batch, seconds
    )
    trained = time.process_time() - start
    held_out = pictures(images, planted.side, seed=1)
    with torch.no_grad():
        accuracy = float((model(held_out.x).argmax(1) == held_out.y).float().mean())
    methods = [method for method in METHODS if method != "attention" or model.traits.look]
    found: dict[str, dict[str, Any]] = {method: asdict(share_in_corner(model, held_out, method)) for method in methods}
    found["grad_cam"] = asdict(grad_cam(model, held_out))
    row = {
        "model": planted.name,
        "options": planted.options,
        "side": planted.side,
        "accuracy": round(accuracy, 3),
        "train_cpu_s": round(trained, 1),
        "methods": {name: {key: round(value, 3) for key, value in one.items()} for name, one in found.items()},
    }
    shares = ", ".join(f"{name} {one['share']:.2f} of {one['area']:.2f}" for name, one in found.items())
    print(f"{family}: accuracy {accuracy:.2f} after {trained:.0f} s; {shares}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()
    for family in options.families:
        row = measure(family, options.seconds, options.images)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
        known["machine"] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": platform.machine()}
        known["images"] = options.images
        known["rows"] = {
            name: {**known["rows"], family: row}[name] for name in FAMILIES if name in {*known["rows"], family}
        }
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
