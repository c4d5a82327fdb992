"""What the server says, as values: FastAPI writes them as JSON and describes them in its OpenAPI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anyres.evaluation.drift import Monitor, What
from anyres.flow import Metric, Size
from anyres.maps.look import Method
from anyres.serve.model import ServedModel
from anyres.serve.options import LEAST_SIDE
from anyres.serve.scheduler import Outcome
from anyres.serve.sizing import Reason


@dataclass(frozen=True)
class Guess:
    """One class of an image."""

    label: int  # its index
    name: str
    probability: float  # in [0, 1]


@dataclass(frozen=True)
class Milliseconds:
    """What an answer took."""

    read: float  # decoding and resizing
    queue: float  # waiting for a batch
    compute: float  # of the batches it was in
    total: float  # from the request's head to its answer, its body's way included


@dataclass(frozen=True)
class Answered:
    """The answer to ``POST /predict``."""

    predictions: list[Guess]  # likeliest first
    size: str  # px, 224 or 320x192 (height x width), at which the model saw the image
    reason: Reason  # why: usual, asked, deadline, load, cascade
    looks: list[str]  # the sizes it was seen at; of a cascade perhaps several
    in_time: bool | None  # whether the deadline was kept; null: there was none
    milliseconds: Milliseconds
    model: str


@dataclass(frozen=True)
class Wrong:
    """Why there is no answer, in one line."""

    error: str
    retry_after_ms: float | None = None  # until it is worth asking again


@dataclass(frozen=True)
class SizeAbout:
    """One size to choose from."""

    size: str  # px, 224 or 320x192 (height x width)
    quality: float | None  # of the run's curve, in its metric; null: not measured
    milliseconds: float  # predicted for one image


@dataclass(frozen=True)
class DriftAbout:
    """How far the last images are from the run's held-out ones in one respect."""

    of: What  # confidence, size (of those that the server chose), exit (of a cascade)
    psi: float  # the population stability index
    by_chance: float  # what chance alone stays below in 95 % of cases
    images: int  # that were looked at
    verdict: str  # inside the noise, stable, a small shift, a shift


@dataclass(frozen=True)
class About:
    """What is served here."""

    model: str
    classes: int
    metric: str | None  # of ``quality``: its name
    unit: str  # what follows a quality; % : shares in [0, 1]
    sizes: list[SizeAbout]  # to choose from, cheapest first
    usual: str  # the best of them
    least_side: int  # px, that may be asked for
    most_side: int  # px
    cascade: list[str]  # the cascade's sizes; []: there is none
    several: bool  # several labels an image, each by itself
    megabytes: float  # of a body
    megapixels: float  # of an image
    engine: str
    map: Method | None  # how POST /map looks; null: this model has no map here
    held_out: int | None  # images that drift is told from; null: the run has no curve of its weights
    drift: list[DriftAbout]  # []: too few images so far


def answered(model: ServedModel, outcome: Outcome, top: int, total_ms: float, deadline_ms: float | None) -> Answered:
    """``outcome`` as it is told."""
    shares, labels = outcome.probabilities.topk(min(top, len(outcome.probabilities)))
    guesses = [
        Guess(label, model.classes[label], share) for label, share in zip(labels.tolist(), shares.tolist(), strict=True)
    ]
    spent = Milliseconds(*(round(ms, 3) for ms in (outcome.read_ms, outcome.queue_ms, outcome.compute_ms, total_ms)))
    in_time = None if deadline_ms is None else total_ms <= deadline_ms
    looks = [str(size) for size in outcome.looks]
    return Answered(guesses, str(outcome.size), outcome.reason, looks, in_time, spent, model.name)


def about(
    model: ServedModel, cost_ms: Callable[[Size], float], maps: Method | None, monitor: Monitor | None = None
) -> About:
    """What is served; ``cost_ms``: predicted for one image at a size; ``maps``: how they are made; ``monitor``: of
    drift."""
    metric: Metric | None = model.curve[0].headline if model.curve else None
    known = {result.size: result.best.value for result in model.curve}
    limits = model.options.limits

    def row(size: Size) -> SizeAbout:
        return SizeAbout(str(size), known.get(size), round(cost_ms(size), 3))

    return About(
        model.name,
        len(model.classes),
        metric.name if metric else None,
        metric.unit if metric else "",
        [row(rung.size) for rung in model.rungs],
        str(model.rungs[-1].size),
        LEAST_SIDE,
        limits.side,
        [str(size) for size in model.cuts.sizes],
        model.independent,
        limits.megabytes,
        limits.megapixels,
        model.engine,
        maps,
        model.held_out.images if model.held_out else None,
        [
            DriftAbout(one.what, round(one.psi, 4), round(one.by_chance, 4), one.images, one.verdict)
            for one in (monitor.drifts() if monitor else ())
        ],
    )
