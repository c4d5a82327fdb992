"""How evaluation shows a picture at a size: its center, the whole of it resized, or the whole of it with its shape."""

from __future__ import annotations

from dataclasses import dataclass

from anyres.data.fit import fit_geometry, fit_view
from anyres.data.geometry import View
from anyres.data.views import eval_geometry, eval_plan, eval_view
from anyres.flow import Geometry, Size


@dataclass(frozen=True)
class Framing:
    """A picture -> the view that is scored: the whole picture where ``warp`` or ``fit`` holds, else its center."""

    # share of a side that the center crop keeps, above 0 to 1
    crop: float = 0.875
    # the picture resized to the size whatever its shape
    warp: bool = False
    # without warp: the picture as large as fits into the size, its shape kept, black beyond
    fit: bool = False
    # how it is resized: bicubic or bilinear
    interpolation: str = "bicubic"

    def view(self, picture: View, size: Size) -> View:
        """The view of ``size``, uint8, and where its pixels come from. Raises UserError for a ``crop`` that is none."""
        if self.fit and not self.warp:
            return fit_view(picture, size, self.interpolation)
        pixels = eval_view(picture.pixels, size, self.crop, self.warp, self.interpolation)
        return View(pixels, self.geometry(picture.geometry, size))

    def geometry(self, picture: Geometry, size: Size) -> Geometry:
        """Where the view's pixels come from, without making it; ``picture``: the decoded picture's own."""
        if self.fit and not self.warp:
            return fit_geometry(picture, size)
        return eval_geometry(picture, size, self.crop, self.warp)

    def enlarges(self, picture: Size, size: Size) -> bool:
        """Whether the view needs more pixels than a picture of this size has."""
        if self.fit and not self.warp:
            return all(most > length for most, length in zip(size, picture, strict=True))
        return eval_plan(picture, size, self.crop, self.warp).enlarges
