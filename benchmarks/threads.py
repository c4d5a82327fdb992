"""Predictors shared by 8 threads, weights loaded by 8 threads, and memory over many predictors and calls.

    python benchmarks/threads.py [--quick] [--only "calls at many sizes"]

- answers: 4,000 calls (restv2_nano, 32 px, one image) from 8 threads to one predictor of each engine, each answer
  compared with eager PyTorch's, float32
- loads: `anyres.load_weights` 400 times from 8 threads, of a file that holds an argparse.Namespace beside its tensors
- predictors: resident memory (MiB) while 200 predictors of resmlp_nano are made, used once and dropped, by engine; what
  each adds over the second half, and the same for `torch.export.export` alone, which all but eager begin with
- calls: resident memory over 10,000 calls of one predictor that takes every size, at 24 sizes in turn
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anyres.deploy.predictor import Predictor
from anyres.models import create_model
from anyres.models.weights import load_weights

ENGINES = ("eager", "inductor", "onnxruntime", "openvino")
SIDE = 32


def resident() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def model(name: str = "restv2_nano") -> Any:
    torch.manual_seed(0)
    return create_model(name, 5).eval()


def answers(engine: str, calls: int) -> dict[str, Any]:
    images = torch.randn(64, 1, 3, SIDE, SIDE)
    plain, made = model(), Predictor(model(), f"{engine}:fp32", SIDE)
    with torch.no_grad():
        expected = torch.cat([plain(image) for image in images])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: made(images[i % 64]), range(calls)))
    apart = max(float((logits[0] - expected[i % 64]).abs().max()) for i, logits in enumerate(found))
    return {"calls": calls, "largest difference": apart, "right": apart < 1e-4}


def loads(times: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({"model": model().state_dict(), "args": argparse.Namespace(lr=0.1)}, path)

        def load(_: int) -> str:
            try:
                load_weights(model(), path)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return ""

        with ThreadPoolExecutor(8) as pool:
            failed = [said for said in pool.map(load, range(times)) if said]
    return {"loads": times, "failed": len(failed), "first": failed[:1]}


def growth(make: Callable[[], object], times: int) -> dict[str, Any]:
    """Resident memory at ten moments, and MiB for each call over the second half of them."""
    held = []
    for i in range(times):
        make()
        if (i + 1) % max(times // 10, 1) == 0:
            held.append(round(resident(), 1))
    half = len(held) // 2
    return {"made": times, "MiB": held, "MiB for each": round((held[-1] - held[half - 1]) / (times / 2), 3)}


def use(engine: str) -> None:
    Predictor(model("resmlp_nano"), f"{engine}:fp32", SIDE)(torch.randn(1, 3, SIDE, SIDE))


def export() -> None:
    torch.export.export(model("resmlp_nano"), (torch.randn(1, 3, SIDE, SIDE),))


def calls(times: int) -> dict[str, Any]:
    made = Predictor(model(), "openvino:fp32", SIDE, any_size=True)
    sizes = [(32 + 8 * (i % 6), 32 + 16 * (i // 6)) for i in range(24)]
    held = []
    for i in range(times):
        made(torch.randn(1, 3, *sizes[i // 50 % 24]))
        if (i + 1) % (times // 10) == 0:
            held.append(round(resident(), 1))
    return {"calls": times, "MiB": held, "growth of the second half": round(held[-1] / held[len(held) // 2] - 1, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows; the file's others stay")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "threads.json")
    options = parser.parse_args()
    part = 10 if options.quick else 1
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        **{f"answers, {engine}": partial(answers, engine, 4000 // part) for engine in ENGINES},
        "loads": partial(loads, 400 // part),
        "exports": partial(growth, export, 100 // part),
        **{
            f"predictors, {engine}": partial(growth, partial(use, engine), 200 // part)
            for engine in ("eager", "onnxruntime", "openvino")
        },
        "calls at many sizes": partial(calls, 10_000 // part),
    }
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.only and options.out.exists() else {}
    found |= {"what": __doc__, "torch": torch.__version__, "python": platform.python_version()}
    for name in options.only or rows:
        found[name] = rows[name]()
        print(name, json.dumps(found[name]), flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
