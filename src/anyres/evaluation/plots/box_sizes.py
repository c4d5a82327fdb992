"""The picture of box sizes: what share of the boxes is smaller than so many pixels, one line for each training size."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from anyres.evaluation.plots.theme import DPI, LIGHT, drawn

MARKS = {8: "8 px", 32: "COCO small: below 32", 96: "COCO large: above 96"}
_TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def box_sizes_png(sides: Mapping[str, Float[np.ndarray, " n"]], title: str) -> bytes:
    """A PNG of the cumulative share of boxes by side, the root of the area in pixels, for each named size."""
    figure = Figure(figsize=(8, 4.2), dpi=DPI, facecolor=LIGHT.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=LIGHT.paper)
    every = np.concatenate(list(sides.values()))
    low, high = max(0.5, float(every.min()) * 0.8), float(every.max()) * 1.25
    for place, (pixels, told) in enumerate(MARKS.items()):
        if low < pixels < high:
            axes.axvline(pixels, color=LIGHT.quiet if place == 0 else LIGHT.grid, linewidth=1.2, linestyle="--")
            axes.text(pixels, 101, f" {told}", color=LIGHT.quiet, fontsize=7.5, va="bottom")
    for place, (name, values) in enumerate(sides.items()):
        ordered = np.sort(values)
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        color = LIGHT.models[place % len(LIGHT.models)]
        axes.step(ordered, share, where="post", color=color, linewidth=1.8, label=drawn(f"{name} px"))
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("side of a box in pixels (root of its area)", color=LIGHT.quiet, fontsize=9)
    axes.set_ylabel("boxes that are smaller, %", color=LIGHT.quiet, fontsize=9)
    axes.tick_params(colors=LIGHT.text, labelsize=8.5)
    axes.grid(color=LIGHT.grid, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT.grid)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=LIGHT.text, title="training size", title_fontsize=8.5)
    figure.suptitle(drawn(title), x=0.02, ha="left", color=LIGHT.text, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=LIGHT.paper)
    return buffer.getvalue()
