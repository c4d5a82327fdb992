"""The pixels of a picture or an array as bytes of so many channels, and a sentence on what that took.

Three channels are RGB with alpha laid on white. 16-bit gray is divided by 257 (65535 -> 255), never clipped.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy import ndarray
from PIL import Image, ImageCms

Bytes = UInt8[ndarray, "h w c"]
MOST_CHANNELS = 64  # of an array: the smaller of its first and last axis holds them
_DARK = 16 * 257  # of 65535
_ALPHA = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def channels_in(image: Image.Image) -> int:
    """How many channels a picture has by itself: 1 gray, 2 gray with alpha, 3 color, 4 color with alpha or 4 bands."""
    mode = image.mode
    if mode in ("1", "L", "I", "F") or mode.startswith("I;16"):
        return 1
    return {"LA": 2, "La": 2, "RGBA": 4, "RGBa": 4, "RGBX": 4, "PA": 4}.get(mode, 3)


def to_channels(image: Image.Image, kind: str | None, channels: int, notes: list[str]) -> Image.Image:
    """A picture with 1, 2, 3 or 4 channels; ``kind``: the file's format. Raises ValueError for another number."""
    if channels == 3:
        return _to_rgb(image, kind, notes)
    if channels not in _ALPHA:
        raise ValueError(f"it has {channels_in(image)} channels, and data.channels={channels}")
    mode = image.mode
    wanted = _ALPHA[channels]
    if mode == wanted or (channels == 4 and mode == "RGBX"):
        return image
    if channels == 1:
        return _to_gray(image, kind, notes)
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        notes.append(f"{mode} converted to {wanted}")
        return image.convert("RGBA").convert(wanted)
    notes.append(f"{mode} converted to {wanted}, opaque")
    return _to_rgb(image, kind, []).convert(wanted)


def _to_gray(image: Image.Image, kind: str | None, notes: list[str]) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scale_gray(image, kind, notes)
    notes.append(f"{'black and white' if image.mode == '1' else image.mode} converted to gray")
    return _to_rgb(image, kind, []).convert("L")


def array_to_channels(values: Shaped[ndarray, ...], channels: int, notes: list[str]) -> Bytes:
    """An array (h, w), (h, w, c) or (c, h, w) of numbers as bytes (h, w, channels).

    Gray becomes three equal channels where three are wanted. Raises ValueError for what is no picture of so many.
    """
    rows = in_rows(values)
    has = rows.shape[2]
    if has == 1 and channels == 3:
        notes.append("gray converted to RGB")
        rows = np.repeat(rows, 3, axis=2)
    elif has != channels:
        raise ValueError(f"it has {has} channels, and data.channels={channels}")
    if rows.dtype == np.uint8:
        return np.ascontiguousarray(rows)
    floats = rows.dtype.kind == "f"
    kind = "float" if floats else f"{8 * rows.dtype.itemsize}-bit"
    made: Bytes = _scaled(rows.astype(np.float64), kind, rows.dtype == np.uint16, floats, "array", notes)
    return made


def in_rows(values: Shaped[ndarray, ...]) -> Shaped[ndarray, "h w c"]:
    """(h, w), (h, w, c) or (c, h, w) -> (h, w, c): channels are on the smaller of the first and last axis."""
    if values.dtype.kind not in "uifb" or values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(f"an array of {values.dtype} {values.shape} is no picture")
    if values.ndim == 2:
        return values[:, :, None]
    rows = values if values.shape[2] <= values.shape[0] else values.transpose(1, 2, 0)
    if rows.shape[2] > MOST_CHANNELS:
        raise ValueError(f"an array {values.shape} is no picture: it has more than {MOST_CHANNELS} channels")
    return rows


def _scaled(
    values: Shaped[ndarray, ...], kind: str, sixteen: bool, floats: bool, what: str, notes: list[str]
) -> UInt8[ndarray, ...]:
    """Numbers as bytes. The range is the format's; where it has none, the image's own."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{what} values that are not finite")
    if sixteen and low >= 0 and high <= 65535:
        dark = f", the brightest is {high:g} of 65535: nearly black" if high < _DARK else ""
        values, told = values / 257, f"16-bit {what} scaled to 8 bit{dark}"
    elif floats and low >= 0 and high <= 1:
        values, told = values * 255, f"float {what} scaled from 0..1 to 8 bit"
    elif low >= 0 and high <= 255:
        told = f"{kind} {what} taken as 8 bit"
    else:
        values = (values - low) * (255 / max(high - low, 1e-9))
        told = f"{kind} {what} stretched from {low:g}..{high:g} to 8 bit"
    notes.append(told)
    made: UInt8[ndarray, ...] = np.rint(values).astype(np.uint8)
    return made


def _scale_gray(image: Image.Image, format_: str | None, notes: list[str]) -> Image.Image:
    """16-bit, 32-bit or float gray -> 8 bit."""
    values = np.asarray(image).astype(np.float64)
    high = float(values.max())
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and (format_ in ("PNG", "PPM") or high > 255))
    kind = {"F": "float", "I": "32-bit"}.get(image.mode, "16-bit")
    return Image.fromarray(_scaled(values, kind, sixteen, image.mode == "F", "grey", notes))


def _to_rgb(image: Image.Image, kind: str | None, notes: list[str]) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _scale_gray(image, kind, notes).convert("RGB")
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
