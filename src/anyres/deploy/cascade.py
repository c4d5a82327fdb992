"""A cascade: look at every image small, and again larger only where the small look is not sure enough.

The confidence is the largest probability after temperature scaling (Guo et al., On Calibration of Modern Neural
Networks, ICML 2017, section 4.2), one temperature for each size. What a cascade loses is reckoned with calibrated
probabilities p as if they were the labels, the largest size's and the answering one's, TRUST to 1 - TRUST: an image
answered early with class a where the largest size would say b costs p(b) - p(a). That needs far fewer images than
counting the few answers that differ. Where the early look is much surer than the largest it is a gain.
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
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor

from anyres.config import UserError
from anyres.data.samples import one_thread
from anyres.deploy.engines.backend import OWN_THREADS
from anyres.deploy.predictor import Picture, Prediction, Predictor, likeliest, pixels_of
from anyres.flow import Size

TRUST = 0.75
"""The weight of the largest look's probabilities beside the answering look's, in what an early answer loses."""
STEPS = 32  # shares of the images, between which thresholds are sought
LONGEST = 3  # sizes in a chain
BLOCK = 16  # batches that are held at a time


@dataclass(frozen=True)
class Cascade:
    """``sizes`` from the first look to the last; ``temperatures`` of each; ``thresholds``: the least confidence, 0 to
    1, with which each look but the last answers. ``top1`` and ``lost`` in points, ``shares`` of the images by the look
    that answers them, and ``speedup`` over the largest size alone, on the images it was chosen with."""

    sizes: tuple[str, ...]
    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]
    max_loss: float
    images: int
    expected_loss: float
    top1: float
    lost: float
    shares: tuple[float, ...]
    speedup: float

    @property
    def parsed(self) -> tuple[Size, ...]:
        """Its sizes."""
        return tuple(Size.parse(size) for size in self.sizes)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Cascade:
        """What ``write`` wrote. Raises UserError for no such file, or another."""
        try:
            values = json.loads(path.read_text())
            given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
            return cls(**given)
        except OSError:
            raise UserError(f"{path.parent} has no cascade: `anyres cascade {path.parent}` chooses one") from None
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path} holds no cascade: `anyres cascade {path.parent}` writes it anew") from None


def temperature(logits: Float[Tensor, "n k"], target: Int64[Tensor, " n"]) -> float:
    """The divisor of the logits under which the labels are likeliest, between 1/20 and 20."""

    def nll(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / math.exp(log_t), target))

    found = minimize_scalar(nll, bounds=(-math.log(20), math.log(20)), method="bounded")
    return math.exp(float(found.x))


def sure(logits: Float[Tensor, "n k"], t: float) -> Float32[Tensor, " n"]:
    """The confidence: the largest probability at temperature ``t``."""
    return (logits.float() / t).softmax(1).amax(1)


def answered(confidences: Sequence[Float32[Tensor, " n"]], thresholds: Sequence[float]) -> Int64[Tensor, " n"]:
    """The look, 0 to the last, that answers each image: the first that is sure enough."""
    looks = torch.full((len(confidences[0]),), len(thresholds))
    for look in reversed(range(len(thresholds))):
        looks[confidences[look] >= thresholds[look]] = look
    return looks


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
    sureness = {size: sure(logits[size], temperatures[size]) for size in sizes}
    says = {size: logits[size].argmax(1) for size in sizes}
    shares = {size: (logits[size].double() / temperatures[size]).softmax(1) for size in sizes}
    truth = {size: TRUST * shares[last] + (1 - TRUST) * shares[size] for size in sizes}
    harm = {size: _harm(truth[size], says[last], says[size]) for size in sizes}  # each (n,)
    right = {size: says[size] == target for size in sizes}
    found: list[Cascade] = []
    for chain in _chains(sizes):
        levels = [torch.quantile(sureness[size], torch.linspace(0, 1, STEPS + 1)) for size in chain[:-1]]
        early = [(sureness[s] >= level[:, None]).double() for s, level in zip(chain, levels, strict=False)]  # (s, n)
        expected = 100 * _mean(early, [harm[size] for size in chain])
        spent = [sum(costs[size] for size in chain[: look + 1]) for look in range(len(chain))]
        cost = _mean(early, [torch.full_like(harm[last], each) for each in spent])
        cost[expected > max_loss] = math.inf
        place = torch.unravel_index(cost.argmin(), cost.shape)
        if cost[place].isinf():
            continue
        thresholds = tuple(float(level[i]) for level, i in zip(levels, place, strict=True))
        looks = answered([sureness[size] for size in chain], thresholds)
        kept = torch.stack([right[size] for size in chain])[looks, torch.arange(len(target))]
        top1 = 100 * float(kept.double().mean())
        found.append(
            Cascade(
                sizes=tuple(map(str, chain)),
                temperatures=tuple(temperatures[size] for size in chain),
                thresholds=thresholds,
                max_loss=max_loss,
                images=len(target),
                expected_loss=float(expected[place]),
                top1=top1,
                lost=100 * float(right[last].double().mean()) - top1,
                shares=tuple(float((looks == look).double().mean()) for look in range(len(chain))),
                speedup=costs[last] / float(cost[place]),
            )
        )
    return max(found, key=lambda cascade: (cascade.speedup, -cascade.expected_loss))


def _harm(shares: Float[Tensor, "n k"], instead_of: Int64[Tensor, " n"], answer: Int64[Tensor, " n"]) -> Tensor:
    """How much likelier the class ``instead_of`` is than ``answer``, (n,)."""
    return (shares.gather(1, instead_of[:, None]) - shares.gather(1, answer[:, None]))[:, 0]


def _chains(sizes: Sequence[Size]) -> Iterator[tuple[Size, ...]]:
    """Ascending chains of at most LONGEST sizes that end with the last one, which alone is the shortest."""
    for count in range(LONGEST):
        for before in combinations(sizes[:-1], count):
            yield (*before, sizes[-1])


def _mean(early: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The mean over the images of the value (n,) that goes with the look which answers each, for every choice of
    thresholds: ``early`` says for each look but the last and each of its s thresholds who could be answered, (s, n).
    Returns a tensor with one axis of s for each of ``early``: none, (s,) or (s, s)."""
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
    """Pictures through a cascade, each look a Predictor of its size. What a small look leaves open is gathered over
    many batches before the larger one begins, so that every look works on full batches.

    ``looks``: predictors of the cascade's sizes, in its order. ``answered``: images answered so far by each look.
    """

    def __init__(self, looks: Sequence[Predictor], cascade: Cascade) -> None:
        if [look.size for look in looks] != list(cascade.parsed):
            raise UserError(f"the cascade looks at {', '.join(cascade.sizes)} px: give a predictor for each, in order")
        self.looks, self.cascade = tuple(looks), cascade
        self.answered = [0] * len(looks)

    def predict(self, pictures: Sequence[Picture], top: int = 1) -> list[list[Prediction]]:
        """The ``top`` likeliest classes of each picture, with the calibrated probabilities of the look that answers."""
        answers: list[list[Prediction]] = []
        block = BLOCK * max(look.batch for look in self.looks)
        for start in range(0, len(pictures), block):
            decoded = [pixels_of(picture) for picture in pictures[start : start + block]]
            shares = self._answer(len(decoded), partial(self._prepare, decoded))
            answers += likeliest(shares, self.looks[0].names, top)
        return answers

    def forward(self, views: Sequence[Float[Tensor, "b 3 _ _"]]) -> Float32[Tensor, "b k"]:
        """Normalised pixels of the same images at each of the sizes, in order -> calibrated probabilities."""
        return self._answer(len(views[0]), lambda look, places: views[look][places])

    def _prepare(self, decoded: Sequence[Tensor], look: int, places: Tensor) -> Tensor:
        return self.looks[look].prepare([decoded[i] for i in places.tolist()])

    def _answer(self, count: int, seen: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Probabilities (count, k); ``seen`` gives the images at some places as a look wants them.

        Beside an engine with threads of its own PyTorch has one: two that wait by spinning took a third of the speed.
        """
        with one_thread() if all(look.choice.engine in OWN_THREADS for look in self.looks) else nullcontext():
            return self._look(count, seen)

    def _look(self, count: int, seen: Callable[[int, Tensor], Tensor]) -> Tensor:
        waiting = torch.arange(count)
        answers: Tensor | None = None
        for number, look in enumerate(self.looks):
            parts = [look.forward(seen(number, part)) for part in torch.split(waiting, look.batch) if len(part)]
            if not parts:
                break
            shares = (torch.cat(parts).cpu() / self.cascade.temperatures[number]).softmax(1)
            if answers is None:
                answers = torch.empty(count, shares.shape[1])
            answers[waiting] = shares  # those that stay open are answered anew by the next look
            if number < len(self.cascade.thresholds):
                stays = shares.amax(1) < self.cascade.thresholds[number]
                self.answered[number] += int((~stays).sum())
                waiting = waiting[stays]
            else:
                self.answered[number] += len(waiting)
        return answers if answers is not None else torch.empty(0, 0)
