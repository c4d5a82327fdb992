"""The curve's second picture of a detector: box AP of small, medium and large objects against the picture's size."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from anyres.evaluation.plots.theme import DARK, LIGHT
from anyres.flow import SizeResult

SHOWN = (
    ("box_ap_large", "large: 96 x 96 px or more"),
    ("box_ap_medium", "medium"),
    ("box_ap_small", "small: below 32 x 32 px"),
    ("box_ap", "all"),
)


def object_sizes_png(points: Sequence[SizeResult], dark: bool = False, dpi: int = 150) -> bytes | None:
    """A PNG of one model's ``points``, each with the metrics of ``measured.BOX_METRICS``; None where there is one size
    of objects alone, so that there is nothing to compare.

    Lines are over square sizes; of others, marks at the root of their area.
    """
    known = [
        (key, name)
        for key, name in SHOWN
        if any(key in p.metrics and not math.isnan(p.metrics[key].value) for p in points)
    ]
    if len(known) < 3:
        return None
    ink = DARK if dark else LIGHT
    figure = Figure(figsize=(7.2, 4.2), dpi=dpi, facecolor=ink.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=ink.paper)
    squares = sorted((p for p in points if p.size.height == p.size.width), key=lambda p: p.size.width)
    for place, (key, name) in enumerate(known):
        whole = key == "box_ap"
        color = ink.quiet if whole else ink.models[place]
        style = "--" if whole else "-"
        x = [p.size.width for p in squares]
        y = [100 * p.metrics[key].value for p in squares]
        axes.plot(
            x, y, style, color=color, linewidth=1.6 if whole else 2.2, marker="o", ms=5, mfc=ink.paper, label=name
        )
        for p in points:
            if p.size.height != p.size.width:
                side = math.sqrt(p.size.height * p.size.width)
                axes.plot([side], [100 * p.metrics[key].value], "D", ms=5, mfc=ink.paper, mec=color, mew=1.6)
    sides = sorted({math.sqrt(p.size.height * p.size.width) for p in points})
    reach = max(sides[-1] - sides[0], 16)
    ticks: list[float] = []
    for p in squares:
        if not ticks or p.size.width - ticks[-1] > 0.06 * reach:
            ticks.append(p.size.width)
    axes.xaxis.set_major_locator(FixedLocator(ticks or [round(side) for side in sides[:1]]))
    axes.set_ylim(bottom=-1)
    axes.set_xlabel("image size (pixels)", color=ink.quiet, fontsize=9)
    axes.set_ylabel("box AP, %", color=ink.quiet, fontsize=9)
    axes.grid(color=ink.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, colors=ink.quiet)
    axes.spines[:].set_visible(False)
    legend = axes.legend(title="objects of", loc="best", frameon=True, fontsize=8.5, labelcolor=ink.text)
    legend.get_frame().set(facecolor=ink.paper, edgecolor="none", alpha=0.8)
    legend.get_title().set(color=ink.quiet, fontsize=8.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=ink.paper)
    return buffer.getvalue()
