"""Bytes -> uint8 (c, h, w), and a sentence on whatever had to be done to get there.

A picture is RGB unless other channels are asked for (pixels.py). Of several frames the first counts. Arrays (.npy) and
TIFF files of more bands than Pillow knows are read too.
"""

from __future__ import annotations

import errno
import io
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from anyres.config import UserError
from anyres.data.array_file import is_array, is_white_zero, read_array
from anyres.data.beside_pixels import pixels_alone
from anyres.data.geometry import View, whole
from anyres.data.image_formats import formats, openable
from anyres.data.pixels import Bytes, array_to_channels, to_channels
from anyres.flow import Geometry, Record, Size

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = range(2, 9)  # its values that are not upright
LARGE = 2**25
"""Pixels beyond which an image is read at a fraction, where it is known for what view."""
_ROOM = 4  # times a view, so that a crop of a tenth of the area has its pixels
_MOST_PAGES = 100  # are counted: a TIFF file tells of each only in the one before
_DARK = 16  # of 255


class Unreadable(Exception):
    """An image that cannot be read: its ``name`` and one line of ``reason``."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Decoded:
    """A picture, the sentence on what was done to read it (None: nothing), and the record's name.

    Its memory holds h, w, c, as decoders write it and resizing reads it fastest (``stride()`` is (1, c w, c)).
    ``geometry``: which of the file's pixels, once upright, it was shrunk from; None: it is all of them as they are.
    """

    image: UInt8[Tensor, "c h w"]
    note: str | None
    name: str
    geometry: Geometry | None = None

    @property
    def view(self) -> View:
        """The picture, and where its pixels come from."""
        return whole(self.image) if self.geometry is None else View(self.image, self.geometry)


def decode(
    record: Record,
    short_side: int | None = None,
    dct_side: int | None = None,
    channels: int = 3,
    view_side: int | None = None,
) -> Decoded:
    """Read one image; with ``short_side`` (pixels) a larger one is shrunk to it, by antialiased bicubic filtering.

    With ``dct_side`` a JPEG whose short side is at least twice so long is decoded at 1/2, 1/4 or 1/8, whichever is the
    smallest that keeps that side: libjpeg then computes fewer cosines of each 8 x 8 block and never makes the other
    pixels. Each pixel is the mean of its 2 x 2, 4 x 4 or 8 x 8, where resizing has a wider filter, and a rest of fewer
    pixels at the right and lower edge is cut off, so a view differs a little: docs/data.md has the measured
    differences, and a test bounds them. Other formats are read in full.

    ``channels``: 3 (RGB, alpha laid on white), 1 (gray), 2 (gray and alpha), 4 (RGB and alpha, or 4 bands), or the
    number of an array's or TIFF's bands. ``view_side``: the longest side of the views that are made of it; an image of
    more than ``LARGE`` pixels is then read at a whole fraction whose short side is at least four times that. Raises
    Unreadable for anything that cannot be read to its end, has another number of bands, and for decompression bombs;
    UserError where this process has too many open files.
    """
    with warnings.catch_warnings():  # not for threads: see decode_in_thread
        warnings.simplefilter("ignore")
        return decode_in_thread(record, short_side, dct_side, channels, view_side)


def decode_in_thread(
    record: Record,
    short_side: int | None = None,
    dct_side: int | None = None,
    channels: int = 3,
    view_side: int | None = None,
) -> Decoded:
    """``decode`` without a guard of its own against Pillow's warnings: the caller ignores them around all threads."""
    try:
        opened = openable(record.source)
        if is_array(opened):
            notes: list[str] = []
            pixels, geometry = _in_memory(array_to_channels(read_array(opened), channels, notes), short_side)
        else:
            pixels, geometry, notes = _picture_in(opened, _Wanted(short_side, dct_side, channels, view_side))
        if pixels.shape[1:] == (1, 1):
            notes.append("a single pixel: enlarged to every view")
    except UnidentifiedImageError:
        raise Unreadable(record.name, "no JPEG, PNG, WebP, TIFF or other picture") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(record.name, f"too large to be safe: {_line(error)}") from error
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(f"{record.name}: {error.strerror}: raise `ulimit -n`, or lower data.workers") from error
        raise Unreadable(record.name, _line(error)) from error
    return Decoded(pixels, "; ".join(notes) or None, record.name, geometry)


@dataclass(frozen=True)
class _Wanted:
    """How a picture is read: see ``decode``."""

    short_side: int | None
    dct_side: int | None
    channels: int
    view_side: int | None

    def fraction_of(self, image: Image.Image) -> _Reduced | None:
        """Have a JPEG decoded at a fraction where that is asked for, or needed as it is large."""
        sides = [] if self.dct_side is None else [self.dct_side]
        if self.view_side is not None and image.width * image.height > LARGE:
            sides.append(_ROOM * self.view_side)
        return _reduce(image, max(min(sides), self.short_side or 0)) if sides else None

    def shrink(self, image: Image.Image, notes: list[str]) -> Image.Image:
        """A picture that is still too large, at a whole fraction."""
        if self.view_side is None or image.width * image.height <= LARGE:
            return image
        factor = min(image.size) // max(_ROOM * self.view_side, self.short_side or 0)
        if factor < 2:
            return image
        notes.append(f"{image.width} x {image.height} pixels: read at 1/{factor}")
        return image.reduce(factor)


def _picture_in(opened: Path | io.BytesIO, how: _Wanted) -> tuple[UInt8[Tensor, "c h w"], Geometry | None, list[str]]:
    """What Pillow reads, if need be without what lies beside the pixels."""
    try:
        return _picture(opened, how)
    except (Image.DecompressionBombError, MemoryError):
        raise
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        alone = pixels_alone(opened)
        if alone is None:
            raise
        try:
            pixels, geometry, notes = _picture(io.BytesIO(alone), how)
        except Exception:
            raise error from None
        return pixels, geometry, [*notes, f"what lies beside its pixels is left out ({_line(error)})"]


def _picture(opened: Path | io.BytesIO, how: _Wanted) -> tuple[UInt8[Tensor, "c h w"], Geometry | None, list[str]]:
    """What Pillow reads: pixels, where they come from, and what had to be done."""
    short_side, channels = how.short_side, how.channels
    with Image.open(opened, formats=formats()) as image:
        notes = _frames(image)
        deep = image.mode in ("RGB", "RGBA") and any("16" in str(tile.args) for tile in image.tile)
        reduced = how.fraction_of(image)
        shrinks = short_side is not None and min(image.size) > short_side
        plain = None if reduced or shrinks or channels != 3 else _plain_jpeg(image)
        if plain is not None:
            return plain, None, notes
        image.load()
        if deep:
            notes.append("16-bit colour cut to 8 bit" + _darkness(image))
        orientation = _orientation(image, notes)
        inverts = is_white_zero(image)
        upright = _upright(image, orientation, notes, reduced, channels)
    if inverts:
        upright = ImageOps.invert(upright)
        notes.append("0 is white: inverted")
    seen = _seen(Size(upright.height, upright.width), orientation, reduced)
    upright = how.shrink(upright, notes)
    if channels == 3:
        pixels = _laid_out(np.array(_shrunk(upright, short_side)))
    else:
        pixels, _ = _in_memory(np.array(upright).reshape(upright.height, upright.width, channels), short_side)
    size = Size(*pixels.shape[1:])
    return pixels, None if size == seen.source else replace(seen, size=size), notes


def _in_memory(values: Bytes, short_side: int | None) -> tuple[UInt8[Tensor, "c H W"], Geometry | None]:
    """Bytes (h, w, c), each channel shrunk by itself, and where they come from."""
    bands = [_shrunk(Image.fromarray(np.ascontiguousarray(band)), short_side) for band in np.moveaxis(values, 2, 0)]
    pixels = _laid_out(np.stack([np.asarray(band) for band in bands], axis=2))
    source, size = Size(*values.shape[:2]), Size(*pixels.shape[1:])
    return pixels, None if size == source else replace(_seen(source, 1, None), size=size)


def _laid_out(values: Bytes) -> UInt8[Tensor, "c h w"]:
    """(h, w, c) -> (c, h, w), not moved in memory."""
    return torch.from_numpy(values).permute(2, 0, 1)


def _line(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split()) or type(error).__name__


def _frames(image: Image.Image) -> list[str]:
    is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    count = _pages(image) if is_tiff else int(getattr(image, "n_frames", 1))  # only formats with frames have it
    if count < 2:
        return []
    kind = "animated" if image.format in ("GIF", "PNG", "WEBP", "AVIF") else "multi-page"
    image.seek(0)
    more = " or more" if is_tiff and count == _MOST_PAGES else ""
    return [f"{kind} {image.format}: first of {count}{more} frames"]


def _pages(image: Image.Image) -> int:
    """How many pages a TIFF file has, as far as they are counted."""
    for page in range(1, _MOST_PAGES):
        try:
            image.seek(page)
        except Exception:  # the end, or almost anything on hostile bytes
            return page
    return _MOST_PAGES


def _darkness(image: Image.Image) -> str:
    """That a deep picture is nearly black, as one that uses 8 of 16 bits."""
    brightest = max(high for _, high in image.convert("RGB").getextrema())  # type: ignore[misc]
    return f", the brightest is {brightest} of 255: nearly black" if brightest < _DARK else ""


@dataclass(frozen=True)
class _Reduced:
    """A JPEG decoded at a fraction: ``blocks`` (w, h), the pixels of whole blocks; ``cut`` (right, lower), the pixels
    of the file beyond them; ``file`` (w, h), all its pixels. All before it is turned."""

    blocks: tuple[int, int]
    cut: tuple[int, int]
    file: tuple[int, int]


def _reduce(image: Image.Image, least: int) -> _Reduced | None:
    """Have a JPEG decoded at the smallest fraction that keeps ``least``; None: in full."""
    w, h = image.size
    fraction = next((s for s in (8, 4, 2) if min(w, h) // least >= s), 1)
    if fraction == 1 or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    image.draft(None, (least, least))
    return _Reduced((w // fraction, h // fraction), (w % fraction, h % fraction), (w, h))


def _seen(size: Size, orientation: int, reduced: _Reduced | None) -> Geometry:
    """What an upright image of ``size`` shows of its file: all of it, but for what was cut off by reducing it."""
    if reduced is None:
        return Geometry(size, (0.0, 0.0, float(size.height), float(size.width)), size)
    (w, h), (right, lower) = reduced.file, reduced.cut
    swapped = orientation >= 5
    source = Size(w, h) if swapped else Size(h, w)
    # the side that the last columns and the last rows of the file come to lie on, once it is upright
    columns, rows = right * (orientation in (2, 3, 7, 8)), lower * (orientation in (3, 4, 6, 7))
    top, left = (columns, rows) if swapped else (rows, columns)
    height, width = (w - right, h - lower) if swapped else (h - lower, w - right)
    return Geometry(source, (float(top), float(left), float(height), float(width)), size)


def _plain_jpeg(image: Image.Image) -> UInt8[Tensor, "3 h w"] | None:
    """The pixels of an upright JPEG in colour by torchvision: the same bits in 4/5 of the time; None: Pillow's task.

    Pillow's as well is what torchvision cannot read: it knows why. And where torchvision is not imported, as it is for
    many images (``cache.DecodedImages``): that takes as long as Pillow takes for a thousand JPEGs.
    """
    torchvision = sys.modules.get("torchvision.io")
    if torchvision is None:
        return None
    if type(image) is not JpegImagePlugin.JpegImageFile or image.mode != "RGB" or image.fp is None:
        return None
    try:
        if image.getexif().get(_ORIENTATION, 1) in _TURNED:
            return None
        image.fp.seek(0)
        pixels: Tensor = torchvision.decode_jpeg(torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8))
    except Exception:  # torchvision raises almost anything on hostile bytes; Pillow then says what is wrong
        return None
    return pixels


def _shrunk(rgb: Image.Image, short_side: int | None) -> Image.Image:
    """A larger image at this short side."""
    w, h = rgb.size
    if short_side is None or min(w, h) <= short_side:
        return rgb
    scale = short_side / min(w, h)
    return rgb.resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.BICUBIC)


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """EXIF's number, 1 to 8: 1 is upright."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises almost anything on hostile bytes
        notes.append("EXIF is broken: orientation not applied")
        return 1
    return orientation if orientation in _TURNED else 1


def _upright(
    image: Image.Image, orientation: int, notes: list[str], reduced: _Reduced | None, channels: int
) -> Image.Image:
    """The image with so many channels, cut to its whole blocks, turned by its EXIF orientation."""
    turned: Image.Image = image
    if reduced is not None and reduced.blocks != image.size:
        turned = image.crop((0, 0, *reduced.blocks))
    if orientation != 1:
        turned = ImageOps.exif_transpose(turned) or turned
    made = to_channels(turned, image.format, channels, notes)
    if orientation != 1:
        notes.append(f"{'mirrored' if orientation in (2, 4) else 'rotated'} by its EXIF orientation {orientation}")
    return made
