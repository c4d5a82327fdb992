"""A cascade: run every image at a small size, and again at a larger one only where the model is not confident.

The confidence is the largest probability after temperature scaling (Guo et al., On Calibration of Modern Neural
Networks, ICML 2017, section 4.2), one temperature per size. The expected loss of accuracy uses calibrated probabilities
p in place of labels, those of the largest size and of the answering size weighted LARGEST_WEIGHT to 1 - LARGEST_WEIGHT:
an image answered early with class a, where the largest size would answer b, costs p(b) - p(a). That needs far fewer
images than counting the few answers that differ. It is negative (a gain) where the early stage is much more confident.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor

from anyres.config import Damaged, UserError
from anyres.data.samples import one_thread
from anyres.deploy.predictor import Picture, Prediction, Predictor, likeliest, pixels_of
from anyres.flow import Size
from anyres.storage import read_json, write_text

LARGEST_WEIGHT = 0.75
"""Weight of the largest size's probabilities against the answering size's, in the expected loss of an early answer."""
STEPS = 32  # quantiles of the confidences that are tried as thresholds
LONGEST = 3  # sizes in a chain
BLOCK = 16  # batches that are held at a time


@dataclass(frozen=True)
class Cascade:
    """A chain of sizes with its thresholds, and what it came to on the images it was chosen with."""

    sizes: tuple[str, ...]  # from the first stage to the last
    temperatures: tuple[float, ...]  # of each stage's logits
    thresholds: tuple[float, ...]  # least confidence in [0, 1] with which each stage but the last answers
    max_loss: float  # points of top-1 that it was allowed to lose
    images: int  # it was chosen with
    expected_loss: float  # points of top-1, by calibrated probabilities
    top1: float  # in points
    lost: float  # points of top-1 against the largest size alone
    shares: tuple[float, ...]  # of the images, by the stage that answers them
    speedup: float  # over the largest size alone

    def __post_init__(self) -> None:
        stages = len(self.sizes)
        if not 1 <= stages <= LONGEST or (len(self.temperatures), len(self.thresholds)) != (stages, stages - 1):
            raise ValueError(f"{stages} sizes want as many temperatures, and a threshold for all but the last")
        if not all(0 < value < math.inf for value in self.temperatures):
            raise ValueError(f"temperatures {list(self.temperatures)} must be above 0")
        if not all(0 <= value <= 2 for value in self.thresholds):  # 2: above any confidence, a stage never answers
            raise ValueError(f"thresholds {list(self.thresholds)} must be confidences")
        for size in self.sizes:
            Size.parse(size)

    @property
    def parsed(self) -> tuple[Size, ...]:
        """The stages' sizes."""
        return tuple(Size.parse(size) for size in self.sizes)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Cascade:
        """What ``write`` wrote. Raises UserError for no such file, or another."""
        try:
            read: Cascade = read_json(path, cls)
            return read
        except OSError:
            raise UserError(f"{path.parent} has no cascade: `anyres cascade {path.parent}` chooses one") from None
        except Damaged as error:
            raise UserError(
                f"{path} holds no cascade: `anyres cascade {path.parent}` writes it anew ({error})"
            ) from None


def temperature(logits: Float[Tensor, "n k"], target: Int64[Tensor, " n"]) -> float:
    """The temperature in [1/20, 20] that minimizes the cross-entropy of logits / temperature."""

    def nll(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / math.exp(log_t), target))

    found = minimize_scalar(nll, bounds=(-math.log(20), math.log(20)), method="bounded")
    return math.exp(float(found.x))


def confidence(logits: Float[Tensor, "n k"], t: float) -> Float32[Tensor, " n"]:
    """The confidence: the largest probability at temperature ``t``."""
    return (logits.float() / t).softmax(1).amax(1)


def answering_stage(confidences: Sequence[Float32[Tensor, " n"]], thresholds: Sequence[float]) -> Int64[Tensor, " n"]:
    """The stage, 0 to the last, that answers each image: the first whose confidence reaches its threshold."""
    stages = torch.full((len(confidences[0]),), len(thresholds))
    for stage in reversed(range(len(thresholds))):
        stages[confidences[stage] >= thresholds[stage]] = stage
    return stages


def choose(
    logits: Mapping[Size, Float[Tensor, "n k"]],
    target: Int64[Tensor, " n"],
    costs: Mapping[Size, float],
    max_loss: float,
) -> Cascade:
    """The fastest cascade that ends at the largest of the sizes and is expected to lose at most ``max_loss`` points.

    ``logits`` of the same n labelled images at every size; ``costs``: time of one image at each size, in any one unit.
    Of one size alone where no cascade saves anything. Raises UserError for fewer than two sizes.
    """
    if len(logits) < 2:
        raise UserError("a cascade is of two sizes or more: give --sizes, as 64,96,128")
    sizes = sorted(logits, key=lambda size: (size.height * size.width, size))
    last = sizes[-1]
    temperatures = {size: temperature(logits[size], target) for size in sizes}
    confident = {size: confidence(logits[size], temperatures[size]) for size in sizes}
    answers = {size: logits[size].argmax(1) for size in sizes}
    losses = _expected_losses(logits, temperatures, answers, last)
    right = {size: answers[size] == target for size in sizes}
    found: list[Cascade] = []
    for chain in _chains(sizes):
        levels = [torch.quantile(confident[size], torch.linspace(0, 1, STEPS + 1)) for size in chain[:-1]]
        early = [(confident[s] >= level[:, None]).double() for s, level in zip(chain, levels, strict=False)]  # (s, n)
        expected = 100 * _mean(early, [losses[size] for size in chain])
        spent = [sum(costs[size] for size in chain[: stage + 1]) for stage in range(len(chain))]
        cost = _mean(early, [torch.full_like(losses[last], each) for each in spent])
        cost[expected > max_loss] = math.inf
        best = torch.unravel_index(cost.argmin(), cost.shape)
        if cost[best].isinf():
            continue
        thresholds = tuple(float(level[i]) for level, i in zip(levels, best, strict=True))
        stages = answering_stage([confident[size] for size in chain], thresholds)
        kept = torch.stack([right[size] for size in chain])[stages, torch.arange(len(target))]
        top1 = 100 * float(kept.double().mean())
        found.append(
            Cascade(
                sizes=tuple(map(str, chain)),
                temperatures=tuple(temperatures[size] for size in chain),
                thresholds=thresholds,
                max_loss=max_loss,
                images=len(target),
                expected_loss=float(expected[best]),
                top1=top1,
                lost=100 * float(right[last].double().mean()) - top1,
                shares=tuple(float((stages == stage).double().mean()) for stage in range(len(chain))),
                speedup=costs[last] / float(cost[best]),
            )
        )
    return max(found, key=lambda cascade: (cascade.speedup, -cascade.expected_loss))


def _expected_losses(
    logits: Mapping[Size, Float[Tensor, "n k"]],
    temperatures: Mapping[Size, float],
    answers: Mapping[Size, Int64[Tensor, " n"]],
    last: Size,
) -> dict[Size, Tensor]:
    """For each size and image, (n,): how much likelier the answer of size ``last`` is than this size's."""
    shares = {size: (logits[size].double() / temperatures[size]).softmax(1) for size in logits}
    truth = {size: LARGEST_WEIGHT * shares[last] + (1 - LARGEST_WEIGHT) * shares[size] for size in logits}
    return {size: expected_loss(truth[size], answers[last], answers[size]) for size in logits}


def expected_loss(
    probabilities: Float[Tensor, "n k"], instead_of: Int64[Tensor, " n"], answer: Int64[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """How much likelier the class ``instead_of`` is than the class ``answer``."""
    return (probabilities.gather(1, instead_of[:, None]) - probabilities.gather(1, answer[:, None]))[:, 0]


def _chains(sizes: Sequence[Size]) -> Iterator[tuple[Size, ...]]:
    """Ascending chains of at most LONGEST sizes that end with the last one, which alone is the shortest."""
    for count in range(LONGEST):
        for before in combinations(sizes[:-1], count):
            yield (*before, sizes[-1])


def _mean(early: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The mean over the images of their answering stage's value (n,), for every choice of thresholds.

    ``early``: for each stage but the last and each of its s thresholds, the images it could answer, (s, n). Returns a
    tensor with one axis of s for each of ``early``: none, (s,) or (s, s).
    """
    n = len(values[0])
    if not early:
        return values[0].mean()
    first, stays = early[0], 1 - early[0]
    if len(early) == 1:
        return (first @ values[0] + stays @ values[1]) / n
    second = early[1]
    later = (stays * values[1]) @ second.T + (stays * values[2]) @ (1 - second).T
    return ((first @ values[0])[:, None] + later) / n


class CascadePredictor:
    """Images through a cascade, each stage a Predictor of its size.

    Images that a small stage leaves open are gathered over many batches before the larger one begins, so that every
    stage works on full batches. ``stages``: predictors of the cascade's sizes, in its order. ``answered``: images
    answered so far by each stage.
    """

    def __init__(self, stages: Sequence[Predictor], cascade: Cascade) -> None:
        if [stage.size for stage in stages] != list(cascade.parsed):
            raise UserError(f"the cascade runs at {', '.join(cascade.sizes)} px: give a predictor for each, in order")
        self.stages, self.cascade = tuple(stages), cascade
        self.answered = [0] * len(stages)

    def predict(self, pictures: Sequence[Picture], top: int = 1) -> list[list[Prediction]]:
        """The ``top`` likeliest classes of each image, with the calibrated probabilities of the answering stage."""
        return likeliest(self.probabilities(pictures), self.stages[0].names, top) if pictures else []

    def probabilities(self, pictures: Sequence[Picture]) -> Float32[Tensor, "n k"]:
        """The calibrated probabilities of each image's answering stage; (0, 0) for no images."""
        return self.answers(pictures)[0]

    def answers(self, pictures: Sequence[Picture]) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, " n"]]:
        """The same, and each image's answering stage, from 0 on."""
        found: list[tuple[Tensor, Tensor]] = []
        block = BLOCK * max(stage.batch for stage in self.stages)
        for start in range(0, len(pictures), block):
            decoded = [pixels_of(picture) for picture in pictures[start : start + block]]
            found.append(self._answer(len(decoded), partial(self._prepare, decoded)))
        if not found:
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        probabilities, stages = zip(*found, strict=True)
        return torch.cat(probabilities), torch.cat(stages)

    def forward(self, views: Sequence[Float[Tensor, "b c _ _"]]) -> Float32[Tensor, "b k"]:
        """Normalized pixels of the same images at each of the sizes, in order -> calibrated probabilities."""
        return self._answer(len(views[0]), lambda stage, images: views[stage][images])[0]

    def _prepare(self, decoded: Sequence[Tensor], stage: int, images: Tensor) -> Tensor:
        return self.stages[stage].prepare([decoded[i] for i in images.tolist()])

    def _answer(self, count: int, view: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities (count, k) and answering stages (count,); ``view`` prepares the images of some indices for a
        stage.

        Beside an engine with threads of its own PyTorch has one: two that wait by spinning took a third of the speed.
        """
        with one_thread() if all(stage.backend.own_threads for stage in self.stages) else nullcontext():
            return self._run_stages(count, view)

    def _run_stages(self, count: int, view: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        waiting = torch.arange(count)
        stages = torch.zeros(count, dtype=torch.int64)
        answers: Tensor | None = None
        for number, stage in enumerate(self.stages):
            parts = [stage.forward(view(number, part)) for part in torch.split(waiting, stage.batch) if len(part)]
            if not parts:
                break
            probabilities = (torch.cat(parts).cpu() / self.cascade.temperatures[number]).softmax(1)
            if answers is None:
                answers = torch.empty(count, probabilities.shape[1])
            answers[waiting], stages[waiting] = probabilities, number  # the next stage overwrites what stays open
            if number < len(self.cascade.thresholds):
                stays = probabilities.amax(1) < self.cascade.thresholds[number]
                self.answered[number] += int((~stays).sum())
                waiting = waiting[stays]
            else:
                self.answered[number] += len(waiting)
        return (answers if answers is not None else torch.empty(0, 0)), stages
