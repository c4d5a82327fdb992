"""Bytes -> uint8 (3, h, w) RGB, and a sentence on whatever had to be done to get there.

Alpha is laid on white. 16-bit grey is divided by 257 (65535 -> 255), never clipped. Of several frames the first counts.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.io import decode_jpeg

from anyres.data.geometry import View, whole
from anyres.flow import Geometry, Record, Size, Stored

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = range(2, 9)  # its values that are not upright


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


def decode(record: Record, short_side: int | None = None, dct_side: int | None = None) -> Decoded:
    """Read one image; with ``short_side`` (pixels) a larger one is shrunk to it, by antialiased bicubic filtering.

    With ``dct_side`` a JPEG whose short side is at least twice so long is decoded at 1/2, 1/4 or 1/8, whichever is the
    smallest that keeps that side: libjpeg then computes fewer cosines of each 8 x 8 block and never makes the other
    pixels. Each pixel is the mean of its 2 x 2, 4 x 4 or 8 x 8, where resizing has a wider filter, and a rest of fewer
    pixels at the right and lower edge is cut off, so a view differs a little: docs/data.md has the measured
    differences, and a test bounds them. Other formats are read in full.

    Raises Unreadable for anything that Pillow cannot read to its end, and for decompression bombs.
    """
    with warnings.catch_warnings():  # not for threads: see decode_in_thread
        warnings.simplefilter("ignore")
        return decode_in_thread(record, short_side, dct_side)


def decode_in_thread(record: Record, short_side: int | None = None, dct_side: int | None = None) -> Decoded:
    """``decode`` without a guard of its own against Pillow's warnings: the caller ignores them around all threads."""
    geometry = None
    try:
        with Image.open(_openable(record.source), formats=_formats()) as image:
            notes = _frames(image)
            if image.mode in ("RGB", "RGBA") and any("16" in str(tile.args) for tile in image.tile):
                notes.append("16-bit colour cut to 8 bit")
            reduced = None if dct_side is None else _reduce(image, max(dct_side, short_side or 0))
            shrinks = short_side is not None and min(image.size) > short_side
            pixels = None if reduced or shrinks else _plain_jpeg(image)
            if pixels is None:
                image.load()
                orientation = _orientation(image, notes)
                rgb = _upright(image, orientation, notes, reduced)
                seen = _seen(Size(rgb.height, rgb.width), orientation, reduced)
                rgb = _shrunk(rgb, short_side)
                pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)  # (h, w, 3) -> (3, h, w), not moved
                if reduced or Size(*pixels.shape[1:]) != seen.source:
                    geometry = replace(seen, size=Size(*pixels.shape[1:]))
            if pixels.shape[1:] == (1, 1):
                notes.append("a single pixel: enlarged to every view")
    except UnidentifiedImageError:
        raise Unreadable(record.name, "no JPEG, PNG, WebP, TIFF or other picture") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(record.name, f"too large to be safe: {_line(error)}") from error
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise Unreadable(record.name, _line(error)) from error
    return Decoded(pixels, "; ".join(notes) or None, record.name, geometry)


def _openable(source: Path | bytes | Stored) -> Path | io.BytesIO:
    if isinstance(source, Path):
        return source
    return io.BytesIO(source if isinstance(source, bytes) else source.read())


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Raster formats only: Pillow would hand an EPS named .jpg to Ghostscript, a program that runs what it reads."""
    Image.init()
    wanted = ["JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO"]
    return tuple(name for name in wanted if name in Image.OPEN)


def _line(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(told.split()) or type(error).__name__


def _frames(image: Image.Image) -> list[str]:
    count = int(getattr(image, "n_frames", 1))  # only formats with frames have it
    if count < 2:
        return []
    kind = "animated" if image.format in ("GIF", "PNG", "WEBP", "AVIF") else "multi-page"
    image.seek(0)
    return [f"{kind} {image.format}: first of {count} frames"]


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

    Pillow's as well is what torchvision cannot read: it knows why.
    """
    if type(image) is not JpegImagePlugin.JpegImageFile or image.mode != "RGB" or image.fp is None:
        return None
    try:
        if image.getexif().get(_ORIENTATION, 1) in _TURNED:
            return None
        image.fp.seek(0)
        pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8))
    except Exception:
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
    except Exception:
        notes.append("EXIF is broken: orientation not applied")
        return 1
    return orientation if orientation in _TURNED else 1


def _upright(image: Image.Image, orientation: int, notes: list[str], reduced: _Reduced | None) -> Image.Image:
    """The image in RGB, cut to its whole blocks, turned by its EXIF orientation."""
    turned: Image.Image = image
    if reduced is not None and reduced.blocks != image.size:
        turned = image.crop((0, 0, *reduced.blocks))
    if orientation != 1:
        made = ImageOps.exif_transpose(turned)
        turned = turned if made is None else made
    rgb = _to_rgb(turned, image.format, notes)
    if orientation != 1:
        notes.append(f"{'mirrored' if orientation in (2, 4) else 'rotated'} by its EXIF orientation {orientation}")
    return rgb


def _to_rgb(image: Image.Image, kind: str | None, notes: list[str]) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _scale_gray(image, kind, notes)
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        white = Image.new("RGBA", alpha.size, "white")
        notes.append(f"{mode} with alpha laid on white")
        return Image.alpha_composite(white, alpha).convert("RGB")
    if mode == "LAB":
        notes.append("LAB converted to RGB")
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    names = {"L": "grey", "1": "black and white", "P": "palette"}
    notes.append(f"{names.get(mode, mode)} converted to RGB")
    return image.convert("RGB")


def _scale_gray(image: Image.Image, format_: str | None, notes: list[str]) -> Image.Image:
    """16-bit, 32-bit or float grey -> RGB. The range is the format's; where it has none, the image's own."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("grey values that are not finite")
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and (format_ in ("PNG", "PPM") or high > 255))
    kind = {"F": "float", "I": "32-bit"}.get(image.mode, "16-bit")
    if sixteen and low >= 0 and high <= 65535:
        values, told = values / 257, "16-bit grey scaled to 8 bit"
    elif image.mode == "F" and low >= 0 and high <= 1:
        values, told = values * 255, "float grey scaled from 0..1 to 8 bit"
    elif low >= 0 and high <= 255:
        told = f"{kind} grey taken as 8 bit"
    else:
        values = (values - low) * (255 / max(high - low, 1e-9))
        told = f"{kind} grey stretched from {low:g}..{high:g} to 8 bit"
    notes.append(told)
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
