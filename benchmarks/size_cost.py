"""What a larger image costs: time and memory of each family from 64 to 1024 px, with the exponents fitted.

    python benchmarks/size_cost.py

Each model, form and size is a process of its own: plain eager float32, and folded for OpenVINO in bf16. Time: the
median of calls with one image, warm-up excluded. Memory: the peak of resident memory (Linux counts it anew from before
the first call, or from before building, since the graph engine allocates there) above what was held then.
An exponent is the slope of log(cost) over log(side) between 224 and 1024 px: 2 is linear in the pixels, 4 is quadratic.
Writes benchmarks/results/size_cost.json and docs/size_cost.png, or JSON and picture of another name (--out).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.progress import track
from torch import nn

from anyres.deploy.engines.backend import Backend, build
from anyres.deploy.fuse import fuse
from anyres.evaluation.speed import macs
from anyres.flow import Size
from anyres.models import create_model

ROOT = Path(__file__).parent.parent
OPTIONS: dict[str, dict[str, Any]] = {
    "rest_small": {},
    "restv2_tiny": {},
    "resformer_small": {},
    "resmlp_24": {"any_size": True},
    "deit_small": {},
    "deit3_small": {},
    "cait_xxs24_224": {},
    "S60": {},
    "dino_vits16": {},
}
SIDES = (64, 128, 224, 384, 512, 1024)
FITTED = 224
FORMS = {"plain": Backend("eager", "fp32"), "folded": Backend("openvino", "bf16")}


def cost(name: str, folded: bool, backend: Backend, size: Size, seconds: float) -> dict[str, float]:
    """Milliseconds of one image, and MiB above what the process held (in a process of its own)."""
    torch.manual_seed(0)
    model: nn.Module = create_model(name, **OPTIONS[name]).eval()
    x = torch.randn(1, 3, *size)
    if folded:
        model = fuse(model, (size.height, size.width))
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    run = build(model, backend, x, tuned=folded)
    run(x)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - start)
    return {"ms": round(1000 * statistics.median(times), 3), "mib": round(resident("VmHWM") - held, 1)}


def cost_alone(name: str, folded: bool, backend: Backend, size: Size, seconds: float) -> dict[str, float]:
    """``cost``, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        return alone.submit(cost, name, folded, backend, size, seconds).result()


def resident(what: str) -> float:
    """This process's resident memory, now (VmRSS) or at its peak (VmHWM), MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def exponent(costs: dict[str, dict[str, float]], what: str) -> float:
    """The slope of log(cost) over log(side) from FITTED px on."""
    sides = [int(side) for side in costs if int(side) >= FITTED]
    values = [costs[str(side)][what] for side in sides]
    return round(float(np.polyfit(np.log(sides), np.log(values), 1)[0]), 2)


def draw(models: dict[str, Any], path: Path) -> None:
    """Time and memory over the side, both axes logarithmic, a line for each family."""
    forms = [form for form in FORMS if all(form in facts for facts in models.values())]
    figure = Figure(figsize=(5.5 * len(forms), 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(forms), sharex=True, squeeze=False)
    for row, (what, unit) in enumerate((("ms", "milliseconds"), ("mib", "MiB above what was held"))):
        for column, form in enumerate(forms):
            axes = grid[row][column]
            for i, (name, facts) in enumerate(models.items()):
                sides = [int(side) for side in facts[form]]
                label = f"{name}: {facts['exponents'][form][what]:.1f}"
                values = [facts[form][str(side)][what] for side in sides]
                axes.plot(sides, values, marker="o", markersize=3, label=label, color=f"C{i}")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(SIDES, [str(side) for side in SIDES])
            axes.grid(alpha=0.3)
            axes.set_ylabel(unit)
            axes.set_title(f"{'Time' if what == 'ms' else 'Memory'}, {form} {FORMS[form]}", loc="left")
            axes.legend(fontsize=7, title="exponent of the side, from 224 px", title_fontsize=7)
            if row:
                axes.set_xlabel("height and width, px")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "size_cost.json")
    options = parser.parse_args()
    facts = json.loads(options.out.read_text()) if options.out.exists() else {"models": {}}
    facts |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "batch": 1, "fitted from": FITTED}
    for name in options.models:
        found: dict[str, Any] = {form: {} for form in options.forms}
        for form in found.copy():
            for side in track(SIDES, f"{name}, {form}", transient=True):
                size = Size(side, side)
                found[form][str(side)] = cost_alone(name, form == "folded", FORMS[form], size, options.seconds)
        model = create_model(name, **OPTIONS[name])
        found["macs"] = {str(side): {"g": macs(model, Size(side, side)) / 1e9} for side in SIDES}
        found["exponents"] = {
            **{form: {what: exponent(found[form], what) for what in ("ms", "mib")} for form in options.forms},
            "macs": exponent(found["macs"], "g"),
        }
        print(name, found["exponents"])
        facts["models"][name] = found
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    picture = ROOT / "docs" / f"{options.out.stem}.png"
    draw({name: facts["models"][name] for name in OPTIONS if name in facts["models"]}, picture)


if __name__ == "__main__":
    main()
