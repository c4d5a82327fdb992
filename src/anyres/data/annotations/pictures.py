"""Where the pictures of a set lie, and how large they are, upright."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from anyres.config import first_line
from anyres.data.array_file import array_like, is_array
from anyres.data.folders import walk
from anyres.data.image_formats import formats, openable
from anyres.data.pixels import in_rows
from anyres.data.raw_dataset import cut, one_form
from anyres.flow import Size, Stored
from anyres.storage import exists

_ORIENTATION = 0x0112  # EXIF tag
LYING = (5, 6, 7, 8)
"""EXIF orientations of a picture whose file has its sides exchanged."""


class Seen(NamedTuple):
    """The size of a picture once it is upright, and the EXIF orientation by which it is turned (1: it is not)."""

    size: Size
    orientation: int


def look(source: Path | bytes | Stored) -> Seen:
    """The size of a picture, of which no more than the head is read. Raises ValueError, in one line."""
    try:
        opened = openable(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's
            if is_array(opened):
                return Seen(Size(*in_rows(array_like(opened)).shape[:2]), 1)
            with Image.open(opened, formats=formats()) as image:
                size, orientation = Size(image.height, image.width), _orientation(image)
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise ValueError(cut(first_line(error))) from None
    return Seen(Size(size.width, size.height) if orientation in LYING else size, orientation)


def _orientation(image: Image.Image) -> int:
    try:
        number = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises almost anything on hostile bytes
        return 1
    return number if number in range(1, 9) else 1


class Pictures:
    """Finds pictures by the names that annotation files have for them.

    A name counts from each of ``folders`` in turn. Where it leads nowhere, the picture of that bare name anywhere below
    ``root`` is meant, if there is one alone.
    """

    def __init__(self, root: Path, folders: Iterable[Path] = ()) -> None:
        self.root = root
        self.folders = tuple(dict.fromkeys([*folders, root]))

    def find(self, name: str) -> Path | str:
        """The file, or the sentence that says why there is none."""
        spelled = name.replace("\\", "/")
        for folder in self.folders:
            path = folder / spelled
            if exists(path) and path.is_file():
                return path
        bare = PurePosixPath(spelled).name
        found = self._by_name.get(one_form(bare), [])
        if len(found) == 1:
            return found[0]
        if found:
            return f"{len(found)} pictures below {self.root} are called {cut(bare, 80)}, and none lies where it says"
        return f"there is no such picture below {self.root}"

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Every picture below the root, by its bare name."""
        named: dict[str, list[Path]] = defaultdict(list)
        for path in walk(self.root).images:
            named[one_form(path.name)].append(path)
        return named
