"""The picture of a confusion matrix: a row for each class, colored where its images went."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from anyres.config import printable
from anyres.evaluation.confusion import Confusion
from anyres.evaluation.plots.theme import DARK, LIGHT, drawn

MOST_CLASSES = 50  # that a picture can show
WITH_NUMBERS = 16  # so many classes leave room for a number in each cell
LONGEST = 26  # letters of a name
CELL, SMALL_CELL = 0.46, 0.24  # inches


def heat_map(
    confused: Confusion, title: str = "", dark: bool = False, dpi: int = 150, other: str = "other"
) -> bytes | None:
    """A PNG of the classes that have images, or None where they are more than MOST_CLASSES.

    Color is the share of a row's images; numbers, where there is room, are counts. What was taken for a class without
    images stands in a last column, ``other``.
    """
    names, counts = confused.matrix()
    if len(names) > MOST_CLASSES:
        return None
    ink, few = DARK if dark else LIGHT, len(names) <= WITH_NUMBERS
    cell, points = (CELL, 9.5) if few else (SMALL_CELL, 7.5)
    rows = [_cut(printable(name)) for name in names]
    columns = rows + [other] * (counts.shape[1] - len(rows))
    letters = max(map(len, columns)) * points * 0.62 / 72  # inches of the longest name
    rows, columns = [drawn(name) for name in rows], [drawn(name) for name in columns]
    left, top = letters + 0.5, letters * 0.75 + (0.75 if title else 0.4)
    width, height = left + cell * len(columns) + 0.3 + letters * 0.5, top + cell * len(rows) + 0.35
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=ink.paper)
    FigureCanvasAgg(figure)
    box = (left / width, 0.35 / height, cell * len(columns) / width, cell * len(rows) / height)
    axes = figure.add_axes(box)
    shares = counts / counts.sum(axis=1, keepdims=True)
    colors = LinearSegmentedColormap.from_list("share", [ink.paper, ink.models[0]])
    axes.imshow(shares, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", rotation_mode="anchor", fontsize=points)
    axes.set_yticks(range(len(rows)), rows, fontsize=points)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=ink.text, pad=4)
    axes.set_xticks([i - 0.5 for i in range(1, len(columns))], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, len(rows))], minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color=ink.grid, linewidth=0.7)
    axes.spines[:].set_color(ink.grid)
    if few:
        for i, row in enumerate(counts.tolist()):
            for j, count in enumerate(row):
                if count:
                    on_color = shares[i, j] > 0.5
                    axes.text(
                        j,
                        i,
                        str(count),
                        ha="center",
                        va="center",
                        fontsize=9,
                        color=ink.paper if on_color else ink.text,
                    )
    figure.text(0.12 / width, 0.13 / height, "rows: the class, columns: taken for", fontsize=8.5, color=ink.quiet)
    if title:
        figure.text(0.12 / width, 1 - 0.32 / height, drawn(title), fontsize=12, fontweight="bold", color=ink.text)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=ink.paper)
    return buffer.getvalue()


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
