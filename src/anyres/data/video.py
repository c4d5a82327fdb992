"""Films: their frames at given times, by PyAV. No other module imports it.

**The picking rule.** Time 0 is where the picture track begins. The frame at time t is the one a player shows at t: the
last that begins at or before t (and a microsecond, as times are floats). Before the first frame that is the first one,
and after the last one the last. Times are compared as presentation times (pts), whole numbers of the track's own unit.

Reading goes to the key frame before the first time that is wanted and decodes from there, so a few frames of a long
film cost little. What comes out does not depend on that: a key frame that lies too late is noticed, and the film read
from its start.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anyres.config import UserError, first_line, need
from anyres.flow import Size, Stored

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FILM_ENDINGS = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv")
)
FilmSource = Path | bytes | Stored
"""Where a film's bytes are."""
Pixels = UInt8[np.ndarray, "h w 3"]
GRACE = Fraction(1, 1_000_000)
"""Seconds by which a frame may begin after the time at which it is shown."""
_FAR = 5.0  # seconds between two times that are wanted, beyond which the next key frame is looked for
_INVALID = "Invalid data found when processing input"
_LATE = 1.5  # frames by which the last one that is there may begin before the time that is wanted, without a note


class BrokenFilm(Exception):
    """A film that cannot be read, as one line."""


@dataclass(frozen=True)
class FilmFacts:
    """What the head of a film says: its length in seconds, its frames per second on average, its size as stored."""

    seconds: float
    rate: float
    size: Size

    @property
    def count(self) -> int:
        """About how many frames it has; at least one."""
        return max(1, round(self.seconds * self.rate))


class Frames(NamedTuple):
    """Frames in the order that was asked for, uint8 (h, w, 3), and what had to be done to get them; None: nothing."""

    pictures: list[Pixels]
    note: str | None


def facts(source: FilmSource) -> FilmFacts:
    """What the head of a film says. Raises BrokenFilm, also for a file without pictures."""
    with _opened(source) as (container, stream):
        return _facts(container, stream)


def frames(source: FilmSource, times: Sequence[float], short_side: int | None = None) -> Frames:
    """The frames of a film at ``times``, in seconds and any order, by the rule of this module.

    ``short_side``: pixels to which larger pictures are shrunk, by antialiased bicubic filtering. Raises BrokenFilm for
    a film that cannot be read so far; where it ends before its head says so, the note tells.
    """
    order = sorted(range(len(times)), key=lambda i: times[i])
    found: dict[int, Pixels] = {}
    with _opened(source) as (container, stream):
        known = _facts(container, stream)
        unit, start = _unit(stream), stream.start_time or 0
        wanted = [(start + max(0, math.floor((Fraction(times[i]) + GRACE) / unit)), i) for i in order]
        last = start
        for near in _near(wanted, round(Fraction(_FAR) / unit)):
            for (_, i), frame in _picked(container, stream, near):
                found[i] = _prepared(frame, short_side)
                last = max(last, _begins(frame))
    late = (wanted[-1][0] - last) * float(unit) * known.rate if wanted else 0.0
    if late > _LATE and times[order[-1]] < known.seconds:
        end = (last - start) * float(unit)
        note = f"ends at {end:.2f} of {known.seconds:.2f} s: its last frame stands for the rest"
        return Frames([found[i] for i in range(len(times))], note)
    return Frames([found[i] for i in range(len(times))], None)


def every_frame(source: FilmSource, short_side: int | None = None) -> tuple[list[float], list[Pixels]]:
    """All frames of a short film, and when each begins, in seconds. Raises BrokenFilm."""
    begins, pictures = [], []
    with _opened(source) as (container, stream):
        unit, start = _unit(stream), stream.start_time or 0
        for frame in _decoded(container, stream):
            begins.append(float((_begins(frame) - start) * unit))
            pictures.append(_prepared(frame, short_side))
    if not pictures:
        raise BrokenFilm("no frame of it can be decoded")
    return begins, pictures


@contextmanager
def _opened(source: FilmSource) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The film and its picture track. Raises BrokenFilm for whatever goes wrong within."""
    av = need("av", extra="tasks", purpose="reading films")
    try:
        if isinstance(source, Path) and not source.stat().st_size:
            raise BrokenFilm("the file is empty")
        opened = str(source) if isinstance(source, Path) else io.BytesIO(_bytes(source))
        with av.open(opened, metadata_errors="replace") as container:
            if not container.streams.video:
                raise BrokenFilm("it has no pictures")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # loaders run in processes of their own
            yield container, stream
    except (BrokenFilm, UserError):
        raise
    except (av.error.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        said = error.strerror if isinstance(error, av.error.FFmpegError | OSError) else None
        told = said or first_line(error)
        raise BrokenFilm("no film that can be read" if told == _INVALID else told) from None


def _bytes(source: bytes | Stored) -> bytes:
    data = source if isinstance(source, bytes) else source.read()
    if not data:
        raise BrokenFilm("the file is empty")
    return data


def _unit(stream: Any) -> Fraction:
    unit = stream.time_base
    if not unit:
        raise BrokenFilm("its frames have no times")
    return Fraction(unit)


def _facts(container: InputContainer, stream: VideoStream) -> FilmFacts:
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    if stream.duration:
        seconds = float(stream.duration * _unit(stream))
    elif container.duration:
        seconds = container.duration / 1e6
    else:  # nothing in the head: the packets tell
        ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
        seconds = float((max(ends, default=0) - (stream.start_time or 0)) * _unit(stream))
        container.seek(0)
    return FilmFacts(seconds, rate, Size(max(stream.height, 1), max(stream.width, 1)))


def _near(wanted: Sequence[tuple[int, int]], far: int) -> Iterator[list[tuple[int, int]]]:
    """Times in ascending order, in groups that are read in one go."""
    group: list[tuple[int, int]] = []
    for each in wanted:
        if group and each[0] - group[-1][0] > far:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _picked(
    container: InputContainer, stream: VideoStream, wanted: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], VideoFrame]]:
    """Each of ``wanted``, which ascend, with the frame that is shown then."""
    begin = stream.start_time or 0
    decoded: Iterator[VideoFrame] = iter(())
    if wanted[0][0] > begin:
        container.seek(wanted[0][0], stream=stream, backward=True)
        decoded = _decoded(container, stream)
    held = next(decoded, None)
    if held is None or _begins(held) > wanted[0][0]:  # the start, beyond the end, or a key frame that lies too late
        container.seek(begin, stream=stream, backward=True)
        decoded = _decoded(container, stream)
        held = next(decoded, None)
    if held is None:
        raise BrokenFilm("no frame of it can be decoded")
    waiting = list(wanted)
    for frame in decoded:
        while waiting and waiting[0][0] < _begins(frame):
            yield waiting.pop(0), held
        if not waiting:
            return
        held = frame
    yield from ((each, held) for each in waiting)


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    yield from container.decode(stream)


def _begins(frame: VideoFrame) -> int:
    """When a frame is shown, in the track's unit."""
    if frame.pts is None:
        raise BrokenFilm("its frames have no times")
    return frame.pts


def _prepared(frame: VideoFrame, short_side: int | None) -> Pixels:
    """A frame upright, and no larger than is wanted."""
    picture: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    if short_side is not None and min(picture.size) > short_side:
        scale = short_side / min(picture.size)
        sides = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
    if frame.rotation:
        picture = picture.rotate(frame.rotation, expand=True)
    return np.asarray(picture)
