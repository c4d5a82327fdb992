"""Whether what a model is asked now resembles what it was measured on: histograms of held-out images, and how far
others are from them.

The distance is the population stability index, the sum over bins of (q - p) ln(q / p), of shares p among m held-out
images and q among n others. Where both come from one population, PSI x nm / (n + m) follows the chi-squared
distribution with one degree of freedom less than bins (Yurdakul, Statistical Properties of Population Stability Index,
2018): so what chance alone gives is told beside. By the usual rule of thumb less than 0.1 is stable, more than 0.25 a
shift. Imports no torch.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from anyres.flow import Size
from anyres.storage import parse_json

BINS = 10
FEWEST = 200
"""Images from which on a distance is told."""
WINDOW = 1000
"""The last images that are looked at together."""
What = Literal["confidence", "size", "exit"]
WHATS: tuple[What, ...] = ("confidence", "size", "exit")


@dataclass(frozen=True)
class Confidences:
    """Largest probabilities of held-out images at one size: ``edges``, BINS - 1 ascending deciles in [0, 1], and how
    many images lie in each bin (``counts``, BINS; a value on an edge counts above it)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != BINS - 1 or len(self.counts) != BINS or list(self.edges) != sorted(self.edges):
            raise ValueError(f"{BINS - 1} ascending edges and {BINS} counts are expected")
        if not all(0 <= edge <= 1 for edge in self.edges) or min(self.counts) < 0 or not any(self.counts):
            raise ValueError("edges are probabilities, and counts of images")

    def bin_of(self, confidence: float) -> int:
        """0 to BINS - 1."""
        return bisect_right(self.edges, confidence)

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> Confidences:
        """The deciles of ``values``, and how many lie between."""
        edges = np.clip(np.quantile(values.astype(np.float64), np.arange(1, BINS) / BINS), 0, 1)
        counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=BINS)
        return cls(tuple(edges.tolist()), tuple(counts.tolist()))


@dataclass(frozen=True)
class HeldOut:
    """What held-out images looked like to a model: ``images`` of them; confidences by size (``224``, ``320x192``); the
    ``usual`` size, at which all are answered where nothing stands against it; ``exits``, the shares of the cascade's
    sizes that answered, of ``exit_images`` ({} and 0: there is no cascade)."""

    images: int
    confidences: dict[str, Confidences]
    usual: str
    exits: dict[str, float] = field(default_factory=dict)
    exit_images: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> HeldOut:
        """What ``plain`` gave. Raises ValueError for anything else."""
        found: HeldOut = parse_json(json.dumps(values), cls)
        return found


class Drift(NamedTuple):
    """How far ``images`` are from the held-out ones in what they have: PSI, and what chance stays below in 95 % of
    cases."""

    what: What
    psi: float
    by_chance: float
    images: int

    @property
    def verdict(self) -> str:
        """In words."""
        if self.psi <= self.by_chance:
            return "inside the noise"
        return "a shift" if self.psi > 0.25 else "a small shift" if self.psi > 0.1 else "stable"

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.what} {self.psi:.2f} ({self.verdict}; chance alone stays below {self.by_chance:.2f})"


class Monitor:
    """Compares the last WINDOW images (``most``; None: all) with the held-out ones. Neither its work for an image nor
    its memory grows with their number."""

    def __init__(self, held_out: HeldOut, most: int | None = WINDOW) -> None:
        self.held_out, self._most = held_out, most
        self._seen: dict[What, Counter[tuple[str, int]]] = {what: Counter() for what in WHATS}
        self._last: dict[What, deque[tuple[str, int]]] = {what: deque() for what in WHATS}

    def add(self, size: Size | str, confidence: float, *, cascade: bool = False, chosen: bool = True) -> None:
        """An image was answered at ``size`` with the largest probability ``confidence``; by a ``cascade``, it is an
        exit, for its probabilities have temperatures of their own. ``chosen``: nobody asked for that size."""
        text = str(size)
        if cascade:
            if self.held_out.exits:
                self._count("exit", (text, 0))
            return
        if chosen:
            self._count("size", (text, 0))
        known = self.held_out.confidences.get(text)
        if known is not None and math.isfinite(confidence):
            self._count("confidence", (text, known.bin_of(confidence)))

    def _count(self, what: What, key: tuple[str, int]) -> None:
        seen, last = self._seen[what], self._last[what]
        seen[key] += 1
        if self._most is None:
            return
        last.append(key)
        if len(last) > self._most:
            oldest = last.popleft()
            seen[oldest] -= 1
            if not seen[oldest]:
                del seen[oldest]

    def drifts(self) -> list[Drift]:
        """What FEWEST images or more say."""
        return [drift for what in WHATS if (drift := self.drift(what)) is not None]

    def drift(self, what: What) -> Drift | None:
        """None for fewer than FEWEST images."""
        images = self._seen[what].total()
        if images < FEWEST:
            return None
        if what == "confidence":
            return self._confidence(images)
        held_out = self.held_out
        shares = held_out.exits if what == "exit" else {held_out.usual: 1.0}
        count = held_out.exit_images if what == "exit" else held_out.images
        keys = sorted({*shares, *(size for size, _ in self._seen[what])})
        before = [count * shares.get(key, 0.0) for key in keys]
        now = [float(self._seen[what][key, 0]) for key in keys]
        return Drift(what, stability(before, now), chance(len(keys), count, images), images)

    def _confidence(self, images: int) -> Drift:
        """Of all sizes together: the deciles of each are its own, and held-out images are weighted as sizes are now."""
        before, now = np.zeros(BINS), np.zeros(BINS)
        by_size: Counter[str] = Counter()
        for (size, place), count in self._seen["confidence"].items():
            now[place] += count
            by_size[size] += count
        for size, count in by_size.items():
            counts = np.array(self.held_out.confidences[size].counts, float)
            before += count * counts / counts.sum()
        held_out = self.held_out.images
        before *= held_out / images
        bins = int(np.count_nonzero(before + now))
        return Drift("confidence", stability(before.tolist(), now.tolist()), chance(bins, held_out, images), images)


def stability(before: Sequence[float], now: Sequence[float]) -> float:
    """The population stability index of two histograms of the same bins. Half an image stands in an empty bin, as its
    share would make the index infinite; a bin that is empty in both counts nothing."""
    kept = [(b or 0.5, n or 0.5) for b, n in zip(before, now, strict=True) if b or n]
    all_before, all_now = sum(b for b, _ in kept), sum(n for _, n in kept)
    return sum((n / all_now - b / all_before) * math.log((n / all_now) / (b / all_before)) for b, n in kept)


def chance(bins: int, before: int, now: int) -> float:
    """What the index stays below in 95 % of cases where both histograms are of one population."""
    from scipy.stats import chi2

    return float(chi2.ppf(0.95, bins - 1) * (1 / before + 1 / now)) if bins > 1 else 0.0


def told(drifts: Iterable[Drift], held_out: HeldOut) -> str:
    """For people, in a sentence; "" where nothing can be said."""
    listed = list(drifts)
    if not listed:
        return ""
    several = f"drift of {listed[0].images:,} images from the {held_out.images:,} held-out ones: "
    return several + "; ".join(drift.line for drift in listed)
