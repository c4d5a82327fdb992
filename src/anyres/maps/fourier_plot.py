"""The picture of spectra: one panel for each kind of map, one curve for each layer, as the ResTv2 paper draws them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MultipleLocator

from anyres.evaluation.plots.theme import DPI, LIGHT, drawn
from anyres.maps.fourier import Spectrum

COLORS = "plasma_r"
MOST_NAMED = 12
"""So many layers are named one by one; of more only the first and the last."""


def fourier_png(spectra: Sequence[Spectrum], title: str) -> bytes:
    """A PNG; layers whose map is too small to hold more than one frequency are left out."""
    parts = list(dict.fromkeys(spectrum.part for spectrum in spectra))
    figure = Figure(figsize=(3.6 * len(parts) + 0.4, 4.2), dpi=DPI, facecolor=LIGHT.paper, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=True):
        layers = [spectrum for spectrum in spectra if spectrum.part == part and len(spectrum.values) > 1]
        for place, spectrum in reversed(list(enumerate(layers))):
            name = drawn(spectrum.module) if len(layers) <= MOST_NAMED or place in (0, len(layers) - 1) else None
            color = colormaps[COLORS](place / max(len(layers), 1))
            axes.plot(spectrum.frequencies, spectrum.values, color=color, linewidth=1.6, label=name)
        axes.set_title(drawn(part), loc="left", color=LIGHT.text, fontsize=10)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1]))
        axes.xaxis.set_major_formatter(FixedFormatter(["0.0π", "0.5π", "1.0π"]))
        axes.yaxis.set_major_locator(MultipleLocator(2))
        axes.set_xlabel("frequency", color=LIGHT.quiet, fontsize=9)
        axes.tick_params(colors=LIGHT.text, labelsize=8.5)
        axes.grid(color=LIGHT.grid, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LIGHT.grid)
        if layers:
            axes.legend(frameon=False, fontsize=7.5, labelcolor=LIGHT.text, reverse=True)
    panels[0].set_ylabel("log amplitude, less that of frequency 0", color=LIGHT.quiet, fontsize=9)
    figure.suptitle(drawn(title), x=0.02, ha="left", color=LIGHT.text, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=LIGHT.paper)
    return buffer.getvalue()
