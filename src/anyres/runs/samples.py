"""Which images a report shows: first some that were answered wrongly."""

from __future__ import annotations

from collections.abc import Sequence

from anyres.data.cache import DecodedImages
from anyres.evaluation.curve import EvalResult
from anyres.evaluation.page import Sample
from anyres.runs.opened import TrainedModel

MOST_SAMPLES, MOST_WRONG = 12, 8


Scored = Sequence[tuple[str, TrainedModel, Sequence[EvalResult]]]
"""Models by name, each with what it answered at each size, on the same images."""


def samples_of(images: DecodedImages, scored: Scored) -> tuple[list[Sample], str]:
    """Images with what every model answered at every size, and a sentence on how they were chosen: first some that a
    model got wrong at its best size, then others, each spread evenly over the set."""
    n = scored[0][2][0].scores.n
    wrong, right = _wrong_and_right(images, scored)
    first = _spread(wrong, MOST_WRONG if len(right) >= MOST_SAMPLES - MOST_WRONG else MOST_SAMPLES)
    others = _spread(right, MOST_SAMPLES - len(first))
    by = "a model at its" if len(scored) > 1 else "the model at its"
    lead = f"First {len(first)} of the {len(wrong)} images (of {n}) that {by} best size got wrong" if wrong else ""
    if wrong:
        lead += f", then {len(others)} others." if others else "."
    return [_sample(images, scored, place) for place in (*first, *others)], lead


def _wrong_and_right(images: DecodedImages, scored: Scored) -> tuple[list[int], list[int]]:
    """Places of the scores where a model is wrong at its best size, and the other places."""
    wrong: set[int] = set()
    places = range(scored[0][2][0].scores.n)
    for name, trained, measured in scored:
        best, task = best_of(measured), trained.task.naming(images.source)
        answers = ((place, task.sample(best.scores, place, name, best.result.size)) for place in places)
        wrong.update(place for place, answer in answers if answer.right is False)
    return sorted(wrong), [place for place in places if place not in wrong]


def _spread(places: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the places, evenly."""
    count = min(count, len(places))
    return [places[i * len(places) // count] for i in range(count)]


def _sample(images: DecodedImages, scored: Scored, place: int) -> Sample:
    """The image at ``place`` of the scores."""
    from torchvision.transforms.v2.functional import to_pil_image

    index = int(scored[0][2][0].scores.index[place])
    answers = [
        trained.task.naming(images.source).sample(found.scores, place, name, found.result.size)
        for name, trained, measured in scored
        for found in measured
    ]
    truth = scored[0][1].task.truth(images.source, index)
    image = images[index].image
    picture = to_pil_image(image if len(image) <= 4 else image[:3])  # of many bands the first three
    return Sample(images.source.records[index].name, picture, truth, answers)


def best_of(results: Sequence[EvalResult]) -> EvalResult:
    """The one with the best headline metric."""
    return max(results, key=lambda found: found.result.quality)
