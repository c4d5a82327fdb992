"""The picture of precision against recall: a line for each class, at an overlap of 0.5."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anyres.evaluation.average_precision import RECALLS, Matched
from anyres.evaluation.plots.theme import DARK, LIGHT, drawn


def precision_recall_png(matched: Matched, classes: Sequence[str], dark: bool = False, dpi: int = 150) -> bytes:
    """A PNG: a line for each class that has objects, named with its AP50; where they are more than there are colors,
    thin lines without names. The mean of several is drawn thick."""
    ink = DARK if dark else LIGHT
    figure = Figure(figsize=(6.4, 4.2), dpi=dpi, facecolor=ink.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=ink.paper)
    curves = 100 * matched.precision[0, :, :, 0]  # (101, k)
    known = np.flatnonzero(~np.isnan(curves[0])).tolist()
    few = len(known) <= len(ink.models)
    for place, c in enumerate(known):
        color, name = (
            (ink.models[place], f"{drawn(classes[c], 30)} {curves[:, c].mean():.1f}") if few else (ink.quiet, None)
        )
        axes.plot(
            100 * RECALLS,
            curves[:, c],
            color=color,
            linewidth=1.6 if few else 0.7,
            alpha=1 if few else 0.45,
            label=name,
            zorder=2,
        )
    if len(known) > 1:
        mean = curves[:, known].mean(1)
        name = f"all {len(known)} classes {mean.mean():.1f}"
        axes.plot(100 * RECALLS, mean, color=ink.text, linewidth=2.6, label=name, zorder=3)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 101.5)
    axes.set_xlabel("recall: objects that are found, %", color=ink.quiet, fontsize=9)
    axes.set_ylabel("precision: boxes that are right, %", color=ink.quiet, fontsize=9)
    axes.grid(color=ink.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, colors=ink.quiet)
    axes.spines[:].set_visible(False)
    title = "box AP50, %"
    legend = axes.legend(title=title, loc="lower left", frameon=True, fontsize=8.5, labelcolor=ink.text)
    legend.get_frame().set(facecolor=ink.paper, edgecolor="none", alpha=0.8)
    legend.get_title().set(color=ink.quiet, fontsize=8.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=ink.paper)
    return buffer.getvalue()
