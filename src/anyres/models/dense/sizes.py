"""What a dense model says of an image that it cannot take, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anyres.config import UserError


def check_side(called: str, size: tuple[int, int], stride: float) -> None:
    """Raises UserError where a side in pixels is below the coarsest stride."""
    height, width = size
    if min(height, width) < stride:
        raise UserError(
            f"{called} takes images of {stride:.0f} px and more a side, not {height}x{width} px: enlarge them"
        )


@contextmanager
def batch_norm_in_words(called: str) -> Iterator[None]:
    """Turns what batch norm says of one value per channel into a line that names the way out."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{called} has batch norm, which cannot learn from one value per channel: give it two images or more, or"
            " larger ones"
        ) from None
