"""The image formats that are read, and what of a file is opened: regular files alone."""

from __future__ import annotations

import io
import stat
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from PIL import Image

from anyres.flow import Stored

PLUGINS = {
    "JPEG": "Jpeg",
    "MPO": "Mpo",
    "PNG": "Png",
    "GIF": "Gif",
    "BMP": "Bmp",
    "DIB": "Bmp",
    "WEBP": "WebP",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "AVIF": "Avif",
    "JPEG2000": "Jpeg2K",
    "TGA": "Tga",
    "ICO": "Ico",
}
"""Raster formats only: Pillow would hand an EPS named .jpg to Ghostscript, a program that runs what it reads. With
Pillow's module for each: importing all of them, as ``Image.init`` does, takes a quarter of a second."""


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Those that this Pillow reads, in the order in which they are tried."""
    for plugin in dict.fromkeys(PLUGINS.values()):
        with suppress(ImportError):
            import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in PLUGINS if name in Image.OPEN)


def openable(source: Path | bytes | Stored) -> Path | io.BytesIO:
    """What Pillow opens: the file, or its bytes. Raises ValueError for a pipe or device, on which reading may hang."""
    if isinstance(source, Path):
        if not stat.S_ISREG(source.stat().st_mode):
            raise ValueError("it is no file, but a folder, pipe or device")
        return source
    return io.BytesIO(source if isinstance(source, bytes) else source.read())
