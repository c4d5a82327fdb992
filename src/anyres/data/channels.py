"""How many channels a set's images are read with, and the mean and deviation that go with them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from PIL import Image

from anyres.data.array_file import array_like, is_array
from anyres.data.image_formats import formats, openable
from anyres.data.pixels import channels_in, in_rows
from anyres.flow import Record

_SAMPLE = 64  # files that are opened to see how many channels a set has


def channels_of(records: Sequence[Record], wanted: int | None = None) -> tuple[int, str | None]:
    """The channels to read the images with, before any is decoded, and what to say of it.

    ``wanted`` (``data.channels``) as it is; else what 64 files spread over the set agree on: 1 for gray, 3 for color, 4
    for color with alpha, or the number of bands. Where they do not agree, and where none can be read, it is 3.
    """
    if wanted is not None:
        return wanted, None
    step = max(1, -(-len(records) // _SAMPLE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        found = {count_channels(record) for record in records[::step]} - {None}
    counts = sorted(count for count in found if count is not None)
    if len(counts) == 1:
        return counts[0], None
    if not counts:
        return 3, None
    told = " and ".join((", ".join(map(str, counts[:-1])), str(counts[-1])))
    return 3, f"images have {told} channels: all are read with 3 (data.channels)"


def count_channels(record: Record) -> int | None:
    """The channels of one file, of which no more than its head is decoded; None: it cannot be read."""
    try:
        opened = openable(record.source)
        if is_array(opened):
            return int(in_rows(array_like(opened)).shape[2])
        with Image.open(opened, formats=formats()) as image:
            return channels_in(image)
    except Exception:  # Pillow raises almost anything on hostile bytes; whoever decodes it says what is wrong
        return None
