"""What turns a file into pixels on this machine, in so few words that two measurements can be told comparable or not.

Accuracies of one model differ by a few tenths of a percent between JPEG decoders and between ways of resizing. Two
fingerprints with equal hashes saw equal pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version

from PIL import features

from anyres.data.decode import decode
from anyres.data.framing import Framing
from anyres.data.geometry import whole
from anyres.flow import Record, Size

PICTURE = "fingerprint.jpg"  # 240 x 180, colour at half resolution; rings of every width, edges, saturated patches
DIGITS = 12


@dataclass(frozen=True)
class Fingerprint:
    """``versions`` of what decodes and resizes; ``pixels``: by size the first digits of the SHA-256 of the view
    (3, H, W), uint8, that evaluation makes of the built-in picture."""

    versions: dict[str, str]
    resize: str
    pixels: dict[str, str]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{told}; {self.resize}; pixels {', '.join(f'{digits} at {size}' for size, digits in self.pixels.items())}"
        )


def fingerprint(
    sizes: Sequence[Size],
    crop: float = 0.875,
    warp: bool = False,
    short_side: int | None = None,
    interpolation: str = "bicubic",
    fit: bool = False,
) -> Fingerprint:
    """Decode and view the built-in picture as evaluation does every image: see ``data.framing.Framing``.

    ``short_side``: of images that are kept decoded (``data.cache_side``); a size that needs more is decoded in full.
    """
    picture = Record(resources.files(__package__).joinpath(PICTURE).read_bytes(), -1, PICTURE)
    full, kept = (decode(picture, side).image for side in (None, short_side))
    pixels, framing = {}, Framing(crop, warp, fit, interpolation)
    for size in sizes:
        image = full if framing.enlarges(Size(*kept.shape[1:]), size) else kept
        view = framing.view(whole(image), size).pixels
        pixels[str(size)] = hashlib.sha256(view.numpy().tobytes()).hexdigest()[:DIGITS]
    packages = {name: version(name) for name in ("pillow", "torchvision", "torch")}
    return Fingerprint({"jpeg": _jpeg_decoder(), **packages}, f"{interpolation}, antialiased", pixels)


def _jpeg_decoder() -> str:
    """The library with which Pillow reads JPEG files here."""
    turbo = features.version_feature("libjpeg_turbo")
    return f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
