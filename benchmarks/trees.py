"""Tree crowns from the air: trained on one scene, tested on another and on two other forests, against the tile's size.

    python benchmarks/trees.py --work .bench_data/trees        # two trainings of about 16 minutes on 2 cores

`detect/trees` on MobileNetV2 with torchvision's ImageNet weights, once at 320, 256 and 192 px, one a step, and once at
320 px, as many steps. Each is scored on the test pictures cut into pictures of about 400 px, as training has them, at
seven sizes; then on the whole pictures, in overlapping tiles of 128 to 512 px and at once. A training that has ended is
read, not made again. Writes benchmarks/results/trees.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from anyres.deploy.predictor import machine
from anyres.flow import Size
from anyres.runs.opened import open_model
from multi_size import train
from objectives import fetch_mobilenet
from tiled_scene import row, source_of

MODELS = {"multi": "[320,256,192]", "single": "[320]"}
TILES = (128, 200, 256, 320, 400, 512)
AT_ONCE = (Size(512, 512), Size(768, 768), Size(1024, 1024))
CHANGES = (
    "model.name=timm:mobilenetv2_100",
    "data.train_split=trainval",
    "data.eval_split=test",
    "train.epochs=300",
    "train.eval_every=null",
    "optim.lr=5e-4",
    "augment.flip_vertical=0.5",
)


def timm_names(work: Path) -> Path:
    """torchvision's file by timm's names: both list the same layers in the same order."""
    kept = work / "mobilenet_v2.safetensors"
    if not kept.exists():
        theirs = torch.load(fetch_mobilenet(work), weights_only=True)
        ours = timm.create_model("mobilenetv2_100").state_dict()
        made = dict(zip(ours, theirs.values(), strict=True))
        assert all(made[key].shape == ours[key].shape for key in ours)
        save_file({key: value.contiguous() for key, value in made.items()}, kept)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".bench_data/trees"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trees.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine(torch.device("cpu")), "torch": torch.__version__, "changes": CHANGES}
    for name, sizes in MODELS.items():
        changes = [*CHANGES, f"weights={timm_names(options.work)}", f"views.sizes={sizes}"]
        found = train("detect/trees", options.work / name, changes)
        model = open_model(str(options.work / name))
        source = source_of(model, "trees", "test")
        asked = [(Size(side, side), side) for side in TILES] + [(size, 0) for size in AT_ONCE]
        found["whole pictures"] = [row(model, source, size, tile) for size, tile in asked]
        for told in found["whole pictures"]:
            print(name, told, flush=True)
        result[name] = found
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
