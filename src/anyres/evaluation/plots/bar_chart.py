"""Bar charts of speeds: one bar for each way to run a model, grouped by model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anyres.evaluation.plots.theme import DPI, LIGHT, drawn
from anyres.storage import atomic_write

OWN = "anyres"


def bars(rows: Sequence[tuple[str, str, float]], path: Path, title: str) -> None:
    """Write horizontal bars: rows of (group, label, value), our own in color, in the order given.

    The format is the one that the ending of ``path`` says (.png, .svg, .pdf).
    """
    groups = list(dict.fromkeys(group for group, _, _ in rows))
    lines = [line for g in groups for line in [(g, None, 0.0), *(row for row in rows if row[0] == g)]]
    figure = Figure(figsize=(8, 0.6 + 0.26 * len(lines)), dpi=DPI, facecolor=LIGHT.paper, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=LIGHT.paper)
    most = max(value for _, _, value in rows)
    for place, (group, label, value) in enumerate(lines):
        if label is None:
            axes.text(0, place, drawn(group), va="center", fontweight="bold", color=LIGHT.text, fontsize=9)
            continue
        own = label.startswith(OWN)
        axes.barh(place, value, height=0.72, color=LIGHT.models[0] if own else LIGHT.grid)
        axes.text(value + 0.01 * most, place, f"{value:.1f}", va="center", color=LIGHT.text, fontsize=8)
        axes.text(-0.01 * most, place, drawn(label), va="center", ha="right", color=LIGHT.text, fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * most)
    axes.set_title(drawn(title), loc="left", color=LIGHT.text, fontsize=11)
    axes.axis("off")
    with atomic_write(path) as draft:
        figure.savefig(draft, format=path.suffix.lstrip(".") or "png")
