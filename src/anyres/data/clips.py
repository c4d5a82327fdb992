"""Clips: which frames of a film are seen, and a clip as the picture that travels: its frames as further channels.

A clip of f frames is uint8 (3 f, h, w): red, green and blue of the first frame, then of the second, and so on. So crops
and flips are the same in all of its frames, and every room that knows pictures of any number of channels knows clips.

**Sampling.** The film, or the part of it that a set names, lasts from a to b.

* ``uniform``: it is cut into f equal parts. Training draws a time within each, from (seed, epoch, index); evaluation
  takes the middle of each.
* ``dense``: frames ``stride`` apart, counted at the film's average rate. Training draws the first one, from (seed,
  epoch, index); evaluation takes the clip in the middle. A film that is shorter shows its last frame again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from anyres.config import UserError
from anyres.data.augment import mix_seed
from anyres.data.clip_config import FRAMES, ClipConfig
from anyres.data.decode import Decoded, Unreadable
from anyres.data.video import GRACE, BrokenFilm, FilmFacts, FilmSource, Frames, Pixels, every_frame, facts, frames
from anyres.flow import Geometry, Record, Size, Stored

_KEPT = 8  # films whose frames stay decoded, where many clips are cut from one
_SHORT = 2000  # frames of such a film, at most


class Draw(NamedTuple):
    """Of what a training sample is drawn: a clip is a function of it."""

    seed: int
    epoch: int
    sample: int


@dataclass(frozen=True)
class Clip:
    """A part of a film as a picture's source: from ``start`` to ``stop`` seconds (None: its end), of which ``how`` says
    what is seen, in order or ``backwards``.

    ``pace``: a number of frames of the film from one frame of the clip to the next, which begins at ``start``, in
    training as in evaluation, whatever ``how`` says of sampling; 0: ``how`` decides.
    """

    film: FilmSource
    start: float = 0.0
    stop: float | None = None
    pace: int = 0
    backwards: bool = False
    how: ClipConfig = field(default_factory=ClipConfig)

    def read(self) -> bytes:
        """The film's bytes."""
        if isinstance(self.film, bytes):
            return self.film
        return self.film.read() if isinstance(self.film, Stored) else self.film.read_bytes()

    def times(self, film: FilmFacts, draw: Draw | None = None) -> list[float]:
        """The times in seconds of the frames that are seen, in the order in which they are; ``draw``: None for
        evaluation."""
        rng = None if draw is None else np.random.default_rng(mix_seed(*draw, 0, 0, 1))
        stop = film.seconds if self.stop is None else min(self.stop, film.seconds)
        start = min(self.start, stop)
        count, frame = self.how.frames, 1 / film.rate
        if self.how.sampling == "uniform" and not self.pace:
            within = np.full(count, 0.5) if rng is None else rng.random(count)
            found = start + (stop - start) * (np.arange(count) + within) / count
        else:
            step = (self.pace or self.how.stride) * frame
            room = 0.0 if self.pace else max(0.0, stop - start - (count - 1) * step - frame)
            begin = start + room * (0.5 if rng is None else rng.random()) + frame / 2  # the middle of a frame's time
            found = np.minimum(begin + step * np.arange(count), max(start, stop - frame / 2))
        times: list[float] = found.tolist()
        return times[::-1] if self.backwards else times


def decode_clip(record: Record, short_side: int | None = None, draw: Draw | None = None) -> Decoded:
    """The clip of a record whose source is a ``Clip``, uint8 (3 f, h, w), its memory holding h, w, 3 f.

    ``short_side``: pixels to which larger frames are shrunk. ``draw``: which clip of training; None: that of
    evaluation. Raises Unreadable.
    """
    clip = record.source
    assert isinstance(clip, Clip)
    try:
        if clip.pace and short_side is not None:
            found, whole = _FILMS.frames(clip, short_side)
        else:
            known = facts(clip.film)
            found, whole = frames(clip.film, clip.times(known, draw), short_side), known.size
    except BrokenFilm as error:
        raise Unreadable(record.name, str(error)) from None
    pixels = torch.from_numpy(np.concatenate(found.pictures, axis=2)).permute(2, 0, 1)  # f x (h, w, 3) -> (3f, h, w)
    size = Size(*pixels.shape[1:])
    if (size.height > size.width) != (whole.height > whole.width):
        whole = Size(whole.width, whole.height)  # turned by its display matrix
    seen = None if size == whole else Geometry(whole, (0.0, 0.0, float(whole.height), float(whole.width)), size)
    return Decoded(pixels, found.note, record.name, seen)


def with_clips(records: Sequence[Record], how: ClipConfig) -> tuple[Record, ...]:
    """Records that see of their films what ``how`` says. Raises UserError where a set has no such clips."""
    made = []
    for record in records:
        assert isinstance(record.source, Clip)
        if record.source.pace and how.frames > FRAMES:
            raise UserError(
                f"clip.frames={how.frames}: the clips of {record.name} have {FRAMES} frames, give at most as many"
            )
        made.append(replace(record, source=replace(record.source, how=how)))
    return tuple(made)


class _Whole(NamedTuple):
    facts: FilmFacts
    begins: list[float]
    pictures: list[Pixels]


class _Films:
    """The last few short films that clips of a pace are cut from, decoded as a whole: each once, not for every clip."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[FilmSource, int], _Whole] = OrderedDict()

    def frames(self, clip: Clip, short_side: int) -> tuple[Frames, Size]:
        """What ``video.frames`` gives for the clip, and the size of the film's pictures. Raises BrokenFilm."""
        with self._lock:
            whole = self._whole((clip.film, short_side))
        times = clip.times(whole.facts)
        if not whole.pictures:
            return frames(clip.film, times, short_side), whole.facts.size
        places = np.searchsorted(np.asarray(whole.begins), np.asarray(times) + float(GRACE), side="right") - 1
        return Frames([whole.pictures[i] for i in places.clip(0).tolist()], None), whole.facts.size

    def _whole(self, key: tuple[FilmSource, int]) -> _Whole:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        known = facts(key[0])
        begins, pictures = every_frame(*key) if known.count <= _SHORT else ([], [])
        made = self._kept[key] = _Whole(known, begins, pictures)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return made


_FILMS = _Films()
