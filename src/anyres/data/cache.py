"""Decode each image once and keep it in memory, as long as the whole set fits a budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import rich
from rich.progress import track

from anyres.config import UserError
from anyres.data.clips import Clip, Draw, decode_clip
from anyres.data.decode import Decoded, Unreadable, decode, decode_in_thread
from anyres.data.samples import tolerated, too_many
from anyres.data.sources import Source
from anyres.flow import Record
from anyres.ops.processors import processors

_SAMPLE = 32  # images decoded to estimate the whole
_MANY = 1000  # images from which on a faster decoder is worth the seconds of its import


class DecodedImages:
    """The images of a source as uint8 (c, h, w), short side at most ``short_side`` pixels (None: as they are).

    All are decoded now, by threads, and kept when their estimated total is at most ``budget_gib`` GiB (``cached``);
    else each is decoded when asked for. ``images[i]`` -> Decoded, or raises Unreadable; the same either way.
    ``images.full(i)``: with all the pixels of the file, decoded anew. ``dct_side``: JPEGs may be decoded at a fraction
    that keeps this short side. ``channels``: of every image, as ``channels.channels_of`` says. ``view_side``: of the
    training views, for which very large images may be decoded at a fraction. See ``decode``.
    """

    def __init__(
        self,
        source: Source,
        short_side: int | None = None,
        budget_gib: float = 4.0,
        *,
        dct_side: int | None = None,
        channels: int = 3,
        view_side: int | None = None,
        progress: bool = True,
    ) -> None:
        if len(source.records) > _MANY:
            import torchvision.io  # noqa: F401  # reads JPEGs faster than Pillow, once it is there

        self.source, self.short_side, self.dct_side, self.channels = source, short_side, dct_side, channels
        self.view_side = view_side
        self._kept: list[Decoded | Unreadable] | None = None
        self._unreadable: dict[int, Unreadable] = {}
        self._converted: dict[int, tuple[str, str]] = {}
        self._heard: dict[str, str] = {}
        step = max(1, len(source.records) // _SAMPLE)
        sample = dict(zip(range(0, len(source.records), step), self._decode_all(source.records[::step]), strict=True))
        sizes = [done.image.numel() for done in sample.values() if isinstance(done, Decoded)]
        self.estimated_bytes = int(sum(sizes) / max(1, len(sizes)) * len(source.records))
        self.cached = self.estimated_bytes <= budget_gib * 2**30
        if self.cached:
            rest = [record for i, record in enumerate(source.records) if i not in sample]
            decoded = iter(self._decode_all(rest, progress=progress))
            self._kept = [sample[i] if i in sample else next(decoded) for i in range(len(source.records))]
        for i, done in enumerate(self._kept) if self._kept else sample.items():
            self._remember(i, done)

    def __len__(self) -> int:
        return len(self.source.records)

    def __getitem__(self, i: int) -> Decoded:
        if self._kept is not None:
            kept = self._kept[i]
            if isinstance(kept, Unreadable):
                raise Unreadable(kept.name, kept.reason)
            return kept
        return self._asked(i, lambda: self._decode(self.source.records[i], decode))

    def _asked(self, i: int, read: Callable[[], Decoded]) -> Decoded:
        """Image i as it is read now."""
        try:
            done: Decoded | Unreadable = read()
        except Unreadable as error:
            done = error
        self._remember(i, done)
        if isinstance(done, Unreadable):
            raise done
        return done

    def full(self, i: int) -> Decoded:
        """Image i with all the pixels of its file, whatever is kept; raises Unreadable."""
        record = self.source.records[i]
        return decode_clip(record) if isinstance(record.source, Clip) else decode(record, channels=self.channels)

    def drawn(self, i: int, draw: Draw) -> Decoded:
        """Image i for one sample of training: of a film, the clip that is drawn for it; raises Unreadable."""
        record = self.source.records[i]
        if isinstance(record.source, Clip) and not record.source.pace:
            return self._asked(i, lambda: decode_clip(record, self.short_side, draw))
        return self[i]

    def report(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(unreadable, converted), as far as this process knows: (name, reason) and (name, what was done)."""
        unreadable = [(error.name, error.reason) for _, error in sorted(self._unreadable.items())]
        return unreadable, [note for _, note in sorted(self._converted.items())]

    def decode_warnings(self) -> dict[str, str]:
        """What was done with each image that is not plain, as far as known: name -> sentence, unreadable ones first."""
        unreadable, converted = self.report()
        known = {name: f"unreadable ({reason}): left out" for name, reason in unreadable} | dict(converted)
        return known | {name: note for name, note in self._heard.items() if name not in known}

    def add_warnings(self, notes: Iterable[tuple[str, str]]) -> None:
        """Take in a batch's notes: a worker process read images that this one did not."""
        self._heard.update(notes)

    def check(self, max_unreadable: float) -> None:
        """Raises UserError when more images than ``samples.tolerated`` are known to be unreadable, or all are."""
        n, bad = len(self), list(self._unreadable.values())
        if bad and (len(bad) == n or len(bad) > tolerated(n, max_unreadable)):
            raise UserError(too_many(len(bad), n, bad[0]))

    def _remember(self, i: int, done: Decoded | Unreadable) -> None:
        if isinstance(done, Unreadable):
            self._unreadable[i] = done
        elif done.note:
            self._converted[i] = (done.name, done.note)

    def _decode(self, record: Record, decode: Callable[..., Decoded]) -> Decoded:
        if isinstance(record.source, Clip):
            return decode_clip(record, self.short_side)
        return decode(record, self.short_side, self.dct_side, self.channels, self.view_side)

    def _decode_all(self, records: Sequence[Record], *, progress: bool = False) -> list[Decoded | Unreadable]:
        def one(record: Record) -> Decoded | Unreadable:
            try:
                return self._decode(record, decode_in_thread)
            except Unreadable as error:
                return error

        with warnings.catch_warnings(), ThreadPoolExecutor(min(8, processors())) as pool:
            warnings.simplefilter("ignore")  # Pillow's, in all threads
            done = pool.map(one, records)
            shown = progress and rich.get_console().is_terminal
            return list(track(done, "Decoding images", len(records), transient=True, disable=not shown))
