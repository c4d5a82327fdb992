"""Which frames of a film make a clip, as values; ``anyres.data.clips`` picks them. Imports no torch."""

from __future__ import annotations

from typing import Literal

from anyres.config import config

FRAMES = 8
"""Of a clip of the built-in set pace."""
MOST_FRAMES = 1024
"""Of any clip."""


@config
class ClipConfig:
    """Which frames of a film make a clip (``task=video``)."""

    frames: int = 8  # of a clip
    # ``uniform``: one frame of each of so many equal parts of the film; ``dense``: frames ``stride`` apart
    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 4  # of dense sampling, in frames of the film at its average rate

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= MOST_FRAMES:
            raise ValueError(f"clip.frames={self.frames} must be 1 to {MOST_FRAMES}")
        if self.stride < 1:
            raise ValueError(f"clip.stride={self.stride} must be 1 or more")
