"""Files of numbers: NumPy's ``.npy``, and TIFF files that Pillow cannot read or would read as something else.

Pillow takes the bytes of separate 16-bit planes for 8-bit ones, the first bands of many for color, and the sign bit of
unsigned 32-bit numbers for a sign. tifffile reads those.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from anyres.data.image_formats import formats

_NPY = b"\x93NUMPY"  # how an array's file begins
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANES, _FORMAT = 258, 262, 277, 284, 339  # tags
WHITE_IS_ZERO = 0
"""A TIFF's photometric interpretation."""


def is_array(opened: Path | io.BytesIO) -> bool:
    """Whether NumPy wrote it, or it is a TIFF file that Pillow does not read, or not rightly."""
    head = _head(opened)
    if head.startswith(_NPY):
        return True
    if not head.startswith(_TIFF):
        return False
    try:
        with Image.open(opened, formats=formats()) as image:
            return isinstance(image, TiffImagePlugin.TiffImageFile) and _is_misread(image)
    except UnidentifiedImageError:
        return True
    finally:
        if not isinstance(opened, Path):
            opened.seek(0)


def _is_misread(image: TiffImagePlugin.TiffImageFile) -> bool:
    tags = image.tag_v2
    bits, samples = max(tags.get(_BITS, (1,))), int(tags.get(_SAMPLES, 1))
    many = samples > 4 and tags.get(_PHOTOMETRIC) in (0, 1, 2)
    planes = samples > 1 and tags.get(_PLANES) == 2 and bits > 8
    unsigned = bits == 32 and next(iter(tags.get(_FORMAT, (1,)))) == 1
    return many or planes or unsigned


def is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white in a gray picture of more than 8 bits, which Pillow leaves as it is."""
    deep = image.mode.startswith("I") or image.mode == "F"
    if not deep or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return bool(image.tag_v2.get(_PHOTOMETRIC) == WHITE_IS_ZERO)


def array_like(opened: Path | io.BytesIO) -> Shaped[np.ndarray, ...]:
    """An array with the shape and type of the file's, without its numbers or their memory. Raises anything."""
    if not _head(opened).startswith(_NPY):
        with _tifffile(opened) as file:
            page = _part(file)
            shape, kind = page.shape, page.dtype
    else:
        with _stream(opened) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(stream)
            there = stream.seek(0, io.SEEK_END)
        if math.prod(shape) * kind.itemsize > there:
            raise ValueError(f"its head tells of an array {shape} of {kind}, and the file has {there} bytes")
    most = 2 * (Image.MAX_IMAGE_PIXELS or 2**40)
    if math.prod(sorted(shape)[-2:]) > most:
        raise ValueError(f"too large to be safe: an array {shape} has more than {most} pixels")
    return np.broadcast_to(np.zeros((), kind), shape)


def read_array(opened: Path | io.BytesIO) -> Shaped[np.ndarray, ...]:
    """The numbers of an array's file, or of a TIFF file's first picture. Raises anything."""
    array_like(opened)
    if not isinstance(opened, Path):
        opened.seek(0)
    if _head(opened).startswith(_NPY):
        values: np.ndarray = np.load(opened, allow_pickle=False)
        return values
    with _tifffile(opened) as file:
        values = _part(file).asarray()
        photometric = file.pages[0].photometric
    if photometric == WHITE_IS_ZERO:
        values = np.iinfo(values.dtype).max - values if values.dtype.kind == "u" else -values
    return values


def _part(file: Any) -> Any:
    """What is read of a TIFF file: its first page where a page has all bands, else the pages as bands."""
    return file.pages[0] if file.pages[0].samplesperpixel > 1 else file.series[0]


def _tifffile(opened: Path | io.BytesIO) -> Any:
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            "a TIFF file of many bands, of separate 16-bit planes or of 32 bits needs tifffile: pip install tifffile"
        ) from None
    return tifffile.TiffFile(opened)


def _stream(opened: Path | io.BytesIO) -> Any:
    return opened.open("rb") if isinstance(opened, Path) else io.BytesIO(opened.getbuffer())


def _head(opened: Path | io.BytesIO) -> bytes:
    if isinstance(opened, Path):
        with opened.open("rb") as file:
            return file.read(len(_NPY))
    return bytes(opened.getbuffer()[: len(_NPY)])
