"""What per-view backward saves: the peak memory of a three-view step, each view back-propagated before the next one
runs, against all views back-propagated together at the end. Same objective (ResFormer, section 3), batch and model.

    python benchmarks/view_memory.py

Each side is a process of its own, with its own peak of resident memory (ru_maxrss) above what it held before the step:
activations, gradients and what the kernels need. A third way recomputes blocks (train.grad_checkpointing) as well. The
gradients are compared with the joint ones: the largest difference over the largest gradient of the same tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from anyres.flow import Batch, Labels
from anyres.models import create_model
from anyres.tasks.classify import Classify
from anyres.training.objectives import ObjectiveConfig
from anyres.training.objectives.supervised import Supervised

STUDIES = {
    "resformer_small": (8, (224, 160, 128)),
    "deit_small": (8, (224, 160, 128)),
    "restv2_tiny": (4, (224, 160, 128)),
    "resmlp_12": (8, (224, 160, 128)),
}
WAYS = ("joint", "per view", "per view, blocks recomputed")
CLASSES = 1000


def step(name: str, way: str, gradients: Path) -> dict[str, int]:
    """One backward pass in this process; its peak above what was held before, in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    count, sizes = STUDIES[name]
    options: dict[str, Any] = {"any_size": True} if name.startswith("resmlp") else {}
    model = create_model(name, CLASSES, **options).train()
    if "recomputed" in way:
        model.set_grad_checkpointing()
    views = tuple(torch.randn(count, 3, side, side) for side in sizes)
    batch = Batch(views, Labels(torch.randn(count, CLASSES).softmax(-1)), torch.arange(count))
    held = peak()
    objective = Supervised(model, ObjectiveConfig(consistency="smooth_l1"), Classify().loss)
    made = objective.terms(objective.student, batch)
    if way == "joint":
        torch.stack([term.loss for term in made]).sum().backward()  # type: ignore[no-untyped-call]
    else:
        for term in made:
            term.loss.backward()  # type: ignore[no-untyped-call]
    above = peak() - held
    save_file({key: p.grad for key, p in model.named_parameters() if p.grad is not None}, gradients)
    return {"held_before_mib": held // 1024, "step_mib": above // 1024}


def peak() -> int:
    """The most memory this process has ever held, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_a_process(name: str, way: str, gradients: Path) -> dict[str, int]:
    # what is freed goes back to the system at once, so that the peak is what is in use
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    words = [sys.executable, __file__, "--step", name, way, str(gradients)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def difference(a: Path, b: Path) -> float:
    """The largest difference of two sets of gradients, relative to the largest entry of the same tensor."""
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys()
    return max(float((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max().clamp(min=1e-12)) for key in ours)


def study(name: str, folder: Path) -> dict[str, Any]:
    files = {way: folder / f"{name}-{i}.safetensors" for i, way in enumerate(WAYS)}
    found = {way: in_a_process(name, way, files[way]) for way in WAYS}
    joint = found["joint"]["step_mib"]
    for way in WAYS[1:]:
        found[way]["of_joint"] = round(found[way]["step_mib"] / joint, 3)  # type: ignore[assignment]
        found[way]["gradients_differ"] = difference(files[way], files["joint"])  # type: ignore[assignment]
    count, sizes = STUDIES[name]
    return {"model": name, "images": count, "views": sizes, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "view_memory.json")
    parser.add_argument("--step", nargs=3, metavar=("MODEL", "WAY", "FILE"), help="what a process of the study does")
    options = parser.parse_args()
    if options.step:
        name, way, file = options.step
        print(json.dumps(step(name, way, Path(file))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in STUDIES:
            rows.append(study(name, Path(folder)))
            print(rows[-1], flush=True)
    about = {"what": __doc__, "torch": torch.__version__, "threads": 1, "dtype": "float32", "rows": rows}
    options.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
