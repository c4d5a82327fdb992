"""Words beside marks that never cover one another: each tries the places around its mark, the nearest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase

MARK = 11.0  # half the side, in pixels, of the square that a mark keeps free
STEP = 8.0  # pixels between the spots that a line keeps free
RINGS = (18.0, 26.0, 36.0, 48.0)  # pixels between a mark and the near edge of its words
WAYS = (90, 270, 60, 120, 240, 300, 30, 150, 210, 330, 0, 180)  # degrees: above first, then below


@dataclass
class Labeller:
    """Keeps what is taken and finds free places for words. A box is (x0, y0, x1, y1) in pixels."""

    renderer: RendererBase
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def avoid(self, axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
        """Keep the line through (x, y), in data units, free of words; one point is a mark."""
        spots = [tuple(map(float, axes.transData.transform(spot))) for spot in zip(x, y, strict=True)]
        if len(spots) == 1:
            self._keep(spots[0][0], spots[0][1], MARK)
        for (x0, y0), (x1, y1) in pairwise(spots):
            steps = max(int(math.hypot(x1 - x0, y1 - y0) / STEP), 1)
            for i in range(steps + 1):
                self._keep(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, STEP / 2)

    def _keep(self, x: float, y: float, half: float) -> None:
        self.taken.append((x - half, y - half, x + half, y + half))

    def put(self, axes: Axes, x: float, y: float, words: str, color: str) -> bool:
        """Write ``words`` near (x, y), in data units; False, and nothing written, where every place is taken."""
        text = axes.text(0, 0, words, fontsize=9, color=color, ha="center", va="center", zorder=5)
        extent = text.get_window_extent(self.renderer)
        half_w, half_h = extent.width / 2, extent.height / 2
        center_x, center_y = axes.transData.transform((x, y))
        frame = axes.get_window_extent(self.renderer)
        x0, y0, x1, y1 = np.asarray(self.taken, dtype=float).reshape(-1, 4).T
        for ring, degrees in product(RINGS, WAYS):
            way = math.radians(degrees)
            middle_x = center_x + math.cos(way) * (ring + half_w)
            middle_y = center_y + math.sin(way) * (ring + half_h)
            left, right = middle_x - half_w - 3, middle_x + half_w + 3
            low, high = middle_y - half_h - 1, middle_y + half_h + 1
            inside = frame.x0 <= left and right <= frame.x1 + 20 and frame.y0 <= low and high <= frame.y1 + 10
            if inside and not ((x0 < right) & (left < x1) & (y0 < high) & (low < y1)).any():
                text.set_position(tuple(axes.transData.inverted().transform((middle_x, middle_y))))
                self.taken.append((left, low, right, high))
                return True
        text.remove()
        return False


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """``heights`` moved as little as needed, in their order, so that neighbours are at least ``gap`` apart."""
    order = sorted(range(len(heights)), key=lambda i: (heights[i], -i))  # of equals the first on top
    groups: list[tuple[float, int]] = []  # (mean height, members) of runs of neighbours that touch
    for i in order:
        mean, members = heights[i], 1
        while groups and mean - groups[-1][0] < gap * (members + groups[-1][1]) / 2:
            other, others = groups.pop()
            mean, members = (mean * members + other * others) / (members + others), members + others
        groups.append((mean, members))
    placed = [mean + gap * (k - (members - 1) / 2) for mean, members in groups for k in range(members)]
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result
