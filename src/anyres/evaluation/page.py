"""What a report page shows, as plain values; ``report.py`` writes them as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from anyres.evaluation.metrics import Comparison
from anyres.flow import Size, SizeResult


@dataclass(frozen=True)
class Pairing:
    """Two models by name, compared on the same images at one size: ``first`` minus ``second``."""

    first: str
    second: str
    size: Size
    comparison: Comparison

    @property
    def verdict(self) -> str:
        """In words: who is better, or that nobody can tell."""
        if self.comparison.inside_noise:
            return "inside the noise"
        return f"clear: {self.first if self.comparison.difference > 0 else self.second} is better"


@dataclass(frozen=True)
class SampleAnswer:
    """What ``model`` answered for an image at ``size``: ``text``, and beside it a ``detail`` such as its probability.

    ``right``: whether that is the truth; None where an answer is not simply right or wrong.
    """

    model: str
    size: Size
    text: str
    detail: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class PageTable:
    """A table of texts: ``words`` are the columns, counted from 0, that are set to the left."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)


@dataclass(frozen=True)
class Section:
    """A part of the page that a task adds: tables side by side, and one picture, as PNGs for light and dark readers.

    ``anchor``: its address within the page, ``report.html#anchor``.
    """

    title: str
    lead: str
    tables: Sequence[PageTable] = ()
    pictures: tuple[bytes, bytes] | None = None
    alt: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Sample:
    """One test image, as a person would see it, the truth about it, and what the models answered."""

    name: str
    image: Image.Image
    truth: str
    predictions: Sequence[SampleAnswer]

    @property
    def models(self) -> list[str]:
        """The models that looked at it, in the order given."""
        return list(dict.fromkeys(p.model for p in self.predictions))

    @property
    def rows(self) -> list[tuple[Size, list[SampleAnswer | None]]]:
        """Per size, one prediction per model; None where a model was not asked at that size."""
        found = {(p.size, p.model): p for p in self.predictions}
        sizes = dict.fromkeys(p.size for p in self.predictions)
        return [(size, [found.get((size, model)) for model in self.models]) for size in sizes]


@dataclass(frozen=True)
class ReportPage:
    """Everything the page shows; plain text throughout, escaped on the way out.

    ``claim`` is one sentence. ``notes`` are sentences about the data (images that could not be read, ...), ``facts``
    pairs of a name and a value about the run (seed, epochs, pixels processed, seconds, versions). ``sections``: what
    the task has to show.
    """

    title: str
    claim: str
    points: Sequence[SizeResult]
    comparisons: Sequence[Pairing] = ()
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    train_sizes: Mapping[str, Sequence[Size]] = field(default_factory=dict)
    sections: Sequence[Section] = ()
