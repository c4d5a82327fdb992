"""An image before decoding, and where the pixels of a view come from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from anyres.flow.size import Size


@runtime_checkable
class Stored(Protocol):
    """The bytes of one image file within something larger: a shard, a table, a library's array."""

    def read(self) -> bytes:
        """The bytes; raises anything when they cannot be had."""
        ...


@runtime_checkable
class Annotation(Protocol):
    """What is drawn on a picture: ``flow.Objects`` or ``flow.MapFile``."""

    @property
    def of_size(self) -> Size:
        """The upright picture's."""
        ...

    def plain(self) -> tuple[object, ...]:
        """What a fingerprint takes: numbers and names."""
        ...


Target = int | tuple[int, ...] | str | Annotation
"""What an image is to be answered with, before it is read."""


@dataclass(frozen=True)
class Record:
    """One image before decoding: where its bytes are, and its class index (-1: no label); where images have several
    labels, the indices of its classes, ascending; where labels are no classes, the label as it is written; where
    something is drawn on images, that."""

    source: Path | bytes | Stored
    target: Target
    name: str  # what a message calls it: the path below the root, or the row of a table


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of one view come from, so that boxes and masks can follow the image.

    ``source``: size of the image in pixels. ``crop``: (top, left, height, width) in pixels of the image, the part that
    is resized to ``size``, the view; it may reach beyond the image where the view is padded. ``flip``: mirrored left
    to right afterwards. ``affine``: what was done after that (mirroring top to bottom, rotation, shear, translation),
    as the 2 x 3 matrix from pixels of the view before it to pixels of the view; None: nothing.
    """

    source: Size
    crop: tuple[float, float, float, float]
    size: Size
    flip: bool = False
    affine: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
