"""Bytes from anyone -> pixels: the header is read first, and what is too large is refused before it is decoded."""

from __future__ import annotations

import io
import warnings

from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from anyres.data.array_file import array_like, is_array
from anyres.data.decode import Unreadable, decode_in_thread
from anyres.data.image_formats import formats
from anyres.flow import Record

NAME = "the image"


class TooLarge(Exception):
    """An image with more pixels than are decoded here; one line."""


def ignore_warnings() -> None:
    """What Pillow warns of is not printed, in all threads of this process: what is wrong is told to the client."""
    for module in ("PIL", "tifffile"):
        warnings.filterwarnings("ignore", module=module)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def read_picture(content: bytes, channels: int, most_pixels: float, view_side: int) -> UInt8[Tensor, "c h w"]:
    """An encoded image as everywhere here: upright, with so many channels, the first frame.

    ``most_pixels``: of the picture, as its header says. ``view_side``: see ``decode``. Raises TooLarge; Unreadable.
    """
    pixels = _pixels(content)
    if pixels > most_pixels:
        raise TooLarge(f"the image has {pixels / 1e6:.3g} megapixels, and {most_pixels / 1e6:g} are read here")
    return decode_in_thread(Record(content, -1, NAME), channels=channels, view_side=view_side).image


def _pixels(content: bytes) -> int:
    """How many pixels the header tells of. Raises Unreadable."""
    opened = io.BytesIO(content)
    try:
        if is_array(opened):
            sides = sorted(array_like(opened).shape)[-2:]
            return int(sides[0] * sides[-1])
        with Image.open(opened, formats=formats()) as image:
            return image.width * image.height
    except UnidentifiedImageError:
        raise Unreadable(NAME, "no JPEG, PNG, WebP, TIFF or other picture") from None
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from None
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise Unreadable(NAME, " ".join(str(error).split()) or type(error).__name__) from None
