"""PNG and JPEG files without what lies beside their pixels: texts, profiles, previews.

Pillow refuses a sound picture whose texts are long or whose profile is damaged; every viewer shows it.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # transparency, orientation, frames


def pixels_alone(opened: Path | io.BytesIO) -> bytes | None:
    """The file without the rest, or None where it is neither PNG nor JPEG, or nothing can be taken away."""
    data = opened.read_bytes() if isinstance(opened, Path) else opened.getvalue()
    made = _png(data) if data.startswith(_PNG) else _jpeg(data) if data.startswith(b"\xff\xd8") else None
    return made if made is not None and len(made) < len(data) else None


def _png(data: bytes) -> bytes:
    """The chunks without which there is no picture (their names begin with a capital), and sound ones of ``_KEPT``."""
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, chunk = data[place + 4 : place + 8], data[place : place + 12 + length]
        is_sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or (kind in _KEPT and is_sound):
            kept.append(chunk)
        place += 12 + length
    return b"".join(kept)


def _jpeg(data: bytes) -> bytes | None:
    """The segments before the pixels but for APP1 to APP13, APP15 and comments; None where they do not follow on."""
    kept, place = [data[:2]], 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xDA:  # the pixels
            return b"".join((*kept, data[place:]))
        (length,) = struct.unpack_from(">H", data, place + 2)
        if not (0xE1 <= marker <= 0xED or marker in (0xEF, 0xFE)):
            kept.append(data[place : place + 2 + length])
        place += 2 + length
    return None
