"""The image formats that are read, and what of a file is opened: regular files alone."""

from __future__ import annotations

import io
import stat
from functools import lru_cache
from pathlib import Path

from PIL import Image

from anyres.flow import Stored


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Raster formats only: Pillow would hand an EPS named .jpg to Ghostscript, a program that runs what it reads."""
    Image.init()
    wanted = ["JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO"]
    return tuple(name for name in wanted if name in Image.OPEN)


def openable(source: Path | bytes | Stored) -> Path | io.BytesIO:
    """What Pillow opens: the file, or its bytes. Raises ValueError for a pipe or device, on which reading may hang."""
    if isinstance(source, Path):
        if not stat.S_ISREG(source.stat().st_mode):
            raise ValueError("it is no file, but a folder, pipe or device")
        return source
    return io.BytesIO(source if isinstance(source, bytes) else source.read())
