"""Paper and ink of the curve's picture: sizes of the sheet, and colors that color-blind readers tell apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from anyres.config import printable

HEADLINE = 0.5  # inches of a sheet that go when there is no title
DPI = 200  # 100 CSS pixels an inch, at twice the density


@dataclass(frozen=True)
class Palette:
    """Colors of one theme; ``models`` are told apart by color-blind readers too (after Okabe and Ito)."""

    paper: str
    text: str
    quiet: str
    grid: str
    models: tuple[str, ...]


ON_LIGHT = ("#0067a8", "#c2500a", "#00805c", "#a0478a", "#6b6b6b", "#8a6d00")
ON_DARK = ("#5ab4f0", "#f0955a", "#3fc79c", "#e08fc6", "#b4b4b4", "#d9b93a")


@dataclass(frozen=True)
class Sheet:
    """Where things lie: inches; then inches from the figure's edges; ``columns`` puts the panels side by side."""

    width: float
    height: float
    columns: bool
    left: float = 0.54
    right: float = 0.26
    top: float = 0.99  # above the first panel: title and the panel's own heading
    foot: float = 0.81  # below the last panel: ticks and the key to the marks
    between: float = 0.54  # beside the models' names, or above and below the second panel's heading

    def share(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A box in inches from the lower left -> in shares of this sheet, as matplotlib wants it."""
        return x / self.width, y / self.height, width / self.width, height / self.height


def drawn(text: str, most: int = 120) -> str:
    """A name as matplotlib takes it: a dollar is a dollar, no formula; what cannot be drawn is spelled out, and more
    than ``most`` letters are cut."""
    letters = (c if ord(c) in _letters() else f"\\u{ord(c):04x}" for c in printable(text, most))
    return "".join(letters).replace("$", r"\$")


@cache
def _letters() -> frozenset[int]:
    """The letters of the font that matplotlib brings; for others it would warn, and draw an empty box."""
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())


WIDE = Sheet(12.0, 5.2, columns=True)  # 1200 x 520 CSS pixels
TALL = Sheet(5.4, 8.4, columns=False, right=0.16, foot=1.12, between=0.98)  # for a telephone
LIGHT = Palette("#ffffff", "#1c2430", "#5f6b7a", "#e6e9ee", ON_LIGHT)
DARK = Palette("#161b22", "#e8ecf1", "#9aa6b4", "#2a313b", ON_DARK)
