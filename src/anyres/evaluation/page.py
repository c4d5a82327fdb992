"""What a report page shows, as plain values; ``report.py`` writes them as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from anyres.evaluation.metrics import PAIRED_SHARES, Comparison
from anyres.flow import Size, SizeResult

POINTS = "percentage points"


@dataclass(frozen=True)
class Pairing:
    """Two models by name, compared on the same images at one size: ``first`` minus ``second``. ``p_adjusted``: the
    test's p-value as one of many that are made together (see ``as_one_family``); ``lower_is_better``: of an error."""

    first: str
    second: str
    size: Size
    comparison: Comparison
    p_adjusted: float | None = None
    lower_is_better: bool = False

    @property
    def winner(self) -> str | None:
        """The better of the two; None where nobody can tell: the interval and the test, also as one of many, must rule
        chance out."""
        if self.comparison.inside_noise or (self.p_adjusted or 0) >= 0.05:
            return None
        return self.first if (self.comparison.difference > 0) != self.lower_is_better else self.second

    @property
    def verdict(self) -> str:
        """In words: who is better, or that nobody can tell."""
        return f"clear: {self.winner} is better" if self.winner else "inside the noise"


def as_one_family(pairings: Sequence[Pairing]) -> list[Pairing]:
    """Pairings as one family of tests, by Benjamini and Hochberg's adjustment, which bounds the share of false finds
    among all finds: alone, one of eight sizes would be clear by chance in every third comparison."""
    from scipy.stats import false_discovery_control

    if len(pairings) < 2:
        return list(pairings)
    p_values = false_discovery_control([pair.comparison.p_value for pair in pairings])
    return [replace(pair, p_adjusted=float(p)) for pair, p in zip(pairings, p_values, strict=True)]


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
class Line:
    """A line of a chart: ``points`` (x, y) from left to right, under a ``name`` for its legend."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over epochs; ``unit`` is of their values; ``kept``: the epoch whose weights were kept (None: not said)."""

    title: str
    lines: Sequence[Line]
    unit: str = ""
    kept: float | None = None


@dataclass(frozen=True)
class Sheet:
    """A picture wider than a page, which scrolls: the content of a JPEG, what it shows, and the same for a reader who
    does not see it."""

    jpeg: bytes
    lead: str
    alt: str


@dataclass(frozen=True)
class FactGroup:
    """Facts that belong together: pairs of a name and a value."""

    title: str
    facts: Sequence[tuple[str, str]]


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

    ``claim`` is one sentence, ``cautions`` more on how far it goes. ``samples_lead`` says how the samples were chosen.
    ``compared_by``: by which interval and test, and what the last column of the comparison counts; ``differences_in``:
    the unit of the differences.
    ``notes`` are sentences about the data (images that could not be read, ...), ``facts`` are about the run (seed,
    epochs, pixels processed, seconds, versions). ``sections``: what the task has to show. ``charts`` and ``sheet``: the
    training. ``commands``: what may come next, and what it does.
    """

    title: str
    claim: str
    points: Sequence[SizeResult]
    comparisons: Sequence[Pairing] = ()
    samples: Sequence[Sample] = ()
    notes: Sequence[str] = ()
    facts: Sequence[FactGroup] = ()
    train_sizes: Mapping[str, Sequence[Size]] = field(default_factory=dict)
    sections: Sequence[Section] = ()
    cautions: Sequence[str] = ()
    samples_lead: str = ""
    charts: Sequence[Chart] = ()
    sheet: Sheet | None = None
    commands: Sequence[tuple[str, str]] = ()
    compared_by: tuple[str, str] = PAIRED_SHARES
    differences_in: str = POINTS

    @property
    def in_points(self) -> bool:
        """Whether differences are percentage points."""
        return self.differences_in == POINTS
