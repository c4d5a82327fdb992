"""Words beside marks that never cover one another: each tries the places around its mark, the nearest first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase

MARK = 11.0  # half the side, in pixels, of the square that a mark keeps free
STEP = 8.0  # pixels between the spots that a line keeps free
RINGS = (26.0, 34.0, 44.0, 56.0)  # pixels between a mark and the near edge of its words


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def meets(self, other: Box) -> bool:
        """Whether the two share more than an edge."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def inside(self, other: Box) -> bool:
        """Whether this one lies wholly in the other."""
        return other.x0 <= self.x0 and self.x1 <= other.x1 and other.y0 <= self.y0 and self.y1 <= other.y1


@dataclass
class Labeller:
    """Keeps what is taken (boxes in pixels) and finds free places for words."""

    renderer: RendererBase
    taken: list[Box] = field(default_factory=list)

    def avoid(self, axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
        """Keep the line through (x, y), in data units, free of words; one point is a mark."""
        spots = [axes.transData.transform(spot) for spot in zip(x, y, strict=True)]
        if len(spots) == 1:
            self._keep(spots[0][0], spots[0][1], MARK)
        for (x0, y0), (x1, y1) in pairwise(spots):
            steps = max(int(math.hypot(x1 - x0, y1 - y0) / STEP), 1)
            for i in range(steps + 1):
                self._keep(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, STEP / 2)

    def _keep(self, x: float, y: float, half: float) -> None:
        self.taken.append(Box(x - half, y - half, x + half, y + half))

    def put(self, axes: Axes, x: float, y: float, words: str, colour: str) -> bool:
        """Write ``words`` near (x, y), in data units; False, and nothing written, where every place is taken."""
        text = axes.text(0, 0, words, fontsize=9, color=colour, ha="center", va="center", zorder=5)
        extent = text.get_window_extent(self.renderer)
        half_w, half_h = extent.width / 2, extent.height / 2
        centre_x, centre_y = axes.transData.transform((x, y))
        extent = axes.get_window_extent(self.renderer)
        frame = Box(extent.x0, extent.y0, extent.x1 + 20, extent.y1 + 10)  # a little may stand out
        for ring in RINGS:
            for degrees in (90, 270, 60, 120, 240, 300, 30, 150, 210, 330, 0, 180):
                way_x, way_y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
                middle_x = centre_x + way_x * (ring - 8 + half_w)
                middle_y = centre_y + way_y * (ring - 8 + half_h)
                box = Box(middle_x - half_w - 3, middle_y - half_h - 1, middle_x + half_w + 3, middle_y + half_h + 1)
                if box.inside(frame) and not any(box.meets(other) for other in self.taken):
                    text.set_position(tuple(axes.transData.inverted().transform((middle_x, middle_y))))
                    self.taken.append(box)
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
