"""Films drawn for tests: every frame has a gray value that tells its number."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STEP = 6
"""Gray levels between two frames."""


def film(
    path: Path,
    values: Iterable[int],
    *,
    size: tuple[int, int] = (32, 48),
    rate: int = 10,
    codec: str = "mpeg4",
    times: Iterable[int] | None = None,
    key_every: int = 12,
) -> Path:
    """Write a film whose frames (height, width) have these gray values; ``times``: when each begins, in 1/rate s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(values)
    begins = list(range(len(numbers)) if times is None else times)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 400_000
        stream.gop_size = key_every
        stream.codec_context.max_b_frames = 0
        stream.codec_context.time_base = Fraction(1, rate)
        for value, begin in zip(numbers, begins, strict=True):
            pixels = np.full((*size, 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def counting(path: Path, count: int = 30, **options: object) -> Path:
    """A film whose frame n has the gray value ``STEP * n``."""
    return film(path, (STEP * n % 252 for n in range(count)), **options)  # type: ignore[arg-type]


def numbers(pictures: Iterable[np.ndarray]) -> list[int]:
    """The numbers of ``counting``'s frames."""
    return [round(float(picture.mean()) / STEP) for picture in pictures]
