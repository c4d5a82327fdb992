"""Four of timm's models on Groceries, from `anyres train` to OpenVINO: what a user of timm's models can do.

For each model: one epoch of three views with consistency; the same run killed in the middle and resumed, compared bit
for bit; the curve at six sizes, a non-square one among them; a prediction through OpenVINO, compared with PyTorch.

    python benchmarks/timm_groceries.py --out benchmarks/results/timm_groceries.json
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

MODELS = ("convnext_atto", "vit_tiny_patch16_224", "mobilenetv4_conv_small", "efficientvit_b0")
VIEWS = "views.sizes=[96,64,48]"
SIZES = "48,64,80,96,128,64x96"
VALUES = (VIEWS, "objective.consistency=smooth_l1", "train.epochs=1", "data.batch_size=32", "train.checkpoint_every=4")


def anyres(*words: str | Path) -> str:
    """What the command prints on stdout. Raises CalledProcessError with what it says on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "anyres", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"anyres {' '.join(map(str, words))}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def train(name: str, out: Path) -> None:
    anyres(*_command(name, out))


def kill_and_resume(name: str, out: Path, step: int = 9) -> None:
    """Kill the run once so many steps are recorded, and give the same command again."""
    process = subprocess.Popen(
        [sys.executable, "-m", "anyres", *map(str, _command(name, out))], stderr=subprocess.DEVNULL
    )
    metrics = out / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < step):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if (out / "model.safetensors").exists():
        raise RuntimeError(f"{name} was done before it could be killed")
    train(name, out)


def _command(name: str, out: Path) -> tuple[str | Path, ...]:
    return ("train", f"timm:{name}", "--data", "groceries", "--out", out, "train.log_every=1", *VALUES)


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended with the same weights and the same record."""
    ours, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    alike = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    return alike and (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def study(name: str, folder: Path, photo: Path) -> dict[str, Any]:
    """All of it for one model."""
    whole, killed = folder / name, folder / f"{name}-killed"
    start = time.perf_counter()
    train(name, whole)
    seconds = time.perf_counter() - start
    kill_and_resume(name, killed)
    found: dict[str, Any] = {"model": f"timm:{name}", "seconds": round(seconds), "resumed": same(whole, killed)}
    sizes = SIZES
    try:
        anyres("curve", whole, "--sizes", sizes)
    except RuntimeError as error:  # a model may take fewer sizes: it says which
        found["refused"] = str(error)
        sizes = ",".join(part for part in SIZES.split(",") if "x" not in part)
        anyres("curve", whole, "--sizes", sizes)
    with (whole / "curve.csv").open(newline="") as file:
        found["curve"] = {
            f"{row['height']}x{row['width']}": round(float(row["top1"]), 4) for row in csv.DictReader(file)
        }
    answers = [anyres("predict", whole, photo, "--top", "1", *how) for how in ((), ("--backend", "openvino:fp32"))]
    shares = [float(re.findall(r"([\d.]+) %", answer)[0]) for answer in answers]
    found |= {"predicted by PyTorch": shares[0], "predicted by OpenVINO": shares[1]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "timm_groceries.json")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photo = folder / "photo.jpg"
        _photo(photo)
        for name in options.models:
            rows.append(study(name, folder, photo))
            print(json.dumps(rows[-1]), flush=True)
            for run in (name, f"{name}-killed"):
                shutil.rmtree(folder / run)
    options.out.write_text(json.dumps({"torch": torch.__version__, "views": VIEWS, "rows": rows}, indent=1) + "\n")


def _photo(path: Path) -> None:
    """One of the set's own photographs."""
    from anyres.data.builtin import load

    path.write_bytes(next(iter(load())).image)


if __name__ == "__main__":
    main()
