"""What each stage of loading costs on these images and this machine, and which of them to do something about."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from anyres.config import UserError
from anyres.data.augment import preserve_rng_state, seed_all, steps
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable, decode
from anyres.data.geometry import View
from anyres.data.loader import LoaderOptions, Steps, choose_workers, train_batches
from anyres.data.samples import Annotated, Sample, collate, one_thread
from anyres.data.targets import reader_of
from anyres.data.views import shrink
from anyres.data.views_config import ViewsConfig
from anyres.ops.processors import processors

STAGES = ("read", "decode", "crop", "flip", "colors", "layout", "shrink", "batch")  # in the order of doing
_CHUNK = 16  # images of a measured batch


@dataclass(frozen=True)
class Loading:
    """``milliseconds``: of one processor for one image, by stage (``read``: of waiting too). ``loader``: images/s of
    the whole loader with ``workers`` processes (0: the main one). ``reducible``: share of the images that ``data.dct``
    would decode at a fraction."""

    milliseconds: dict[str, float]
    loader: float
    workers: int
    processors: int
    cached: bool
    reducible: float

    @property
    def per_core(self) -> float:
        """Images/s that one processor makes."""
        return 1e3 / sum(self.milliseconds.values())

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest."""
        return max(self.milliseconds, key=lambda stage: self.milliseconds[stage])


def measure_loading(
    images: DecodedImages,
    augment: AugmentConfig,
    views: ViewsConfig,
    *,
    batch_size: int,
    workers: int | None = None,
    seconds: float = 5.0,
) -> Loading:
    """Each stage by itself in this process, then the whole loader; ``seconds`` for each of the two.

    Raises UserError when no image can be read.
    """
    images.check(1.0)
    largest = max(max(size) for size in views.parsed)
    milliseconds, reducible = _each_stage(_Maker(images, augment, views), largest, seconds)
    workers = choose_workers(images.cached) if workers is None else workers
    loader = _whole_loader(images, augment, views, batch_size, workers, seconds)
    return Loading(milliseconds, loader, workers, processors(), images.cached, reducible)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        now = time.perf_counter if stage == "read" else time.thread_time
        start = now()
        yield
        self.spent[stage] += now() - start


class _Maker:
    """Views of images as the loader makes them, stage by stage under a clock."""

    def __init__(self, images: DecodedImages, augment: AugmentConfig, views: ViewsConfig) -> None:
        self.images, self.clock = images, _Clock()
        self.annotated = Annotated(images.source.records, reader_of(images.source))
        plan = views.plan(augment)[: 1 if views.share else None]
        self.orders = [steps(size, own) for size, own in plan]
        self.shrunk = views.parsed[1:] if views.share else ()

    def batch(self, first: int) -> list[int]:
        """A batch from image ``first`` on; the short sides of its images, as read."""
        made, sides = [], []
        for index in range(first, first + _CHUNK):
            try:
                picture = self._picture(index % len(self.images))
            except (Unreadable, OSError):
                continue
            views = self._views(picture, index)
            targets = self.annotated.views(index % len(self.images), [view.geometry for view in views])
            made.append(Sample(views, targets, index, ()))
            sides.append(min(picture.geometry.size))
        if made:
            with self.clock("batch"):
                collate(made, self.annotated.reader)
        return sides

    def _picture(self, i: int) -> View:
        if self.images.cached:
            return self.images[i].view
        record = self.images.source.records[i]
        with self.clock("read"):
            data = record.source.read_bytes() if isinstance(record.source, Path) else record.source
            data = data if isinstance(data, bytes) else data.read()
        with self.clock("decode"):
            return decode(
                replace(record, source=data), self.images.short_side, self.images.dct_side, self.images.channels
            ).view

    def _views(self, picture: View, index: int) -> tuple[View, ...]:
        made = []
        for i, order in enumerate(self.orders):
            seed_all(0, 0, index, i)
            view = picture
            for stage, step in order:
                with self.clock(stage):
                    view = step(view)
            made.append(view)
        for size in self.shrunk:
            with self.clock("shrink"):
                made.append(shrink(made[0], size))
        return tuple(made)


def _each_stage(maker: _Maker, largest: int, seconds: float) -> tuple[dict[str, float], float]:
    """Milliseconds for an image, and the share of images that data.dct could reduce; one batch is made for nothing."""
    sides: list[int] = []
    with one_thread(), preserve_rng_state():
        maker.batch(0)
        maker.clock.spent.clear()
        until = time.perf_counter() + seconds
        for first in itertools.count(_CHUNK, _CHUNK):
            sides += maker.batch(first)
            if time.perf_counter() > until:
                break
    if not sides:
        raise UserError(f"{maker.images.source.name}: none of the first {first} images can be read")
    spent = {stage: 1e3 * maker.clock.spent[stage] / len(sides) for stage in STAGES if stage in maker.clock.spent}
    return spent, sum(side >= 2 * largest for side in sides) / len(sides)


def _whole_loader(
    images: DecodedImages, augment: AugmentConfig, views: ViewsConfig, batch_size: int, workers: int, seconds: float
) -> float:
    """Images/s of the loader that a run has."""
    batches = train_batches(
        images,
        images.source.records,
        reader_of(images.source),
        augment,
        views,
        Steps(batch_size, seed=0, start=0, stop=10**9),
        options=LoaderOptions(workers, max_unreadable=1.0, reuse=True),
    )
    for _ in range(1 + workers):
        next(batches)
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        count += len(next(batches).index)
    spent = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return count / spent
