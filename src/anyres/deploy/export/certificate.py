"""Whether an exported file answers as its model does: tried at several sizes, on images of several shapes, and counted
on real ones. What differs is refused; what was measured is the certificate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.augment import resize
from anyres.data.mix import normalize
from anyres.data.views import eval_view
from anyres.deploy.export.dial import Preparation
from anyres.deploy.export.graph import Activation
from anyres.flow import Batch, Labels, Size
from anyres.models.contract import Backbone

PROBABILITY = 1e-4
"""The most that a probability may differ."""
LOGIT, OF_MOTION = 1e-4, 0.01
"""The most that a logit may differ: the larger of so much, and of so large a share of how far logits move from image to
image. Answers of a model that has learnt little are nearly flat: there, probabilities alone would pass anything."""
_CLEAR = 6.0  # logits of several labels: beyond, a probability in float32 no longer tells them
_TINY = 1e-30  # of a probability, before its logarithm
SAME = 0.9
"""The least share of real images whose first class int8 may leave as it was, at any size: below, a file is refused."""
SHAPES = ((131, 97), (200, 333))
"""Of images in the trials, height and width, beside those the pictures have."""

Asked = Callable[[UInt8[Tensor, "b h w c"], Size], Float32[Tensor, "b k"]]
"""A file run by an engine: images and a size in pixels -> probabilities."""


class Wrong(UserError):
    """A file that does not answer as its model does."""


@dataclass(frozen=True)
class Referee:
    """The model itself, with the preparation of its evaluation: what a file has to equal."""

    model: Backbone  # on the CPU, float32, in evaluation mode
    how: Preparation
    activation: Activation

    @torch.inference_mode()
    def ask(self, images: UInt8[Tensor, "b h w c"], size: Size) -> Float32[Tensor, "b k"]:
        """Images -> probabilities, by ``eval_view`` and plain PyTorch."""
        how = self.how
        views = [
            eval_view(image.permute(2, 0, 1), size, how.crop, how.warps(size), how.interpolation) for image in images
        ]
        count = torch.arange(len(views))
        pixels = normalize(Batch((torch.stack(views),), Labels(count), count), how.mean, how.std, torch.device("cpu"))
        output: Tensor = self.model(pixels.views[0])
        if self.activation == "softmax":
            return output.softmax(1)
        return output.sigmoid() if self.activation == "sigmoid" else output


@dataclass(frozen=True)
class Trial:
    """Images of one shape, seen at one size, and what the model says of them."""

    images: UInt8[Tensor, "b h w c"]
    size: Size
    truth: Float32[Tensor, "b k"]


@dataclass(frozen=True)
class Check:
    """One trial of one engine."""

    engine: str
    size: str  # that the model sees, in pixels
    images: str  # how many, and their height and width in pixels
    probability: float  # the largest difference
    logit: float  # the largest difference
    motion: float  # how far the model's logits move from image to image, at this size


@dataclass(frozen=True)
class Count:
    """Real images at one size: what the file and the model say first."""

    engine: str
    size: str  # in pixels
    images: int
    same: int  # on which both have one class first; where nothing is classified, whose outputs agree
    right: int | None  # that the file has right; None: nobody says what is
    model_right: int | None
    mean: float  # difference of a probability
    most: float  # the largest difference of a probability


@dataclass(frozen=True)
class Certificate:
    """What was measured of a file before it was handed over."""

    bounds: dict[str, float]
    checks: tuple[Check, ...]
    counts: tuple[Count, ...]
    source: str  # of the real images
    skipped: dict[str, str]  # engines that were not asked, and why
    hashes: dict[str, str]  # SHA-256 of what must not change
    versions: dict[str, str]  # of the libraries
    precision: Literal["fp32", "int8"] = "fp32"  # int8: checks are of the file before it, counts of itself

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def line(self) -> str:
        """For a terminal."""
        if self.precision == "int8":
            sizes = [self._cost(size) for size in dict.fromkeys(count.size for count in self.counts)]
            return f"int8 in {' and '.join(dict.fromkeys(count.engine for count in self.counts))}: {'; '.join(sizes)}"
        engines = " and ".join(dict.fromkeys(check.engine for check in self.checks))
        tried = ", ".join(dict.fromkeys(check.size for check in self.checks))
        worst = max(check.probability for check in self.checks)
        same, images = (sum(getattr(count, key) for count in self.counts) for key in ("same", "images"))
        return f"{engines} at {tried} px: probabilities within {worst:.1g}, first class equal on {same} of {images}"

    def _cost(self, size: str) -> str:
        """What int8 changes at one size, in the engine where it changes most."""
        found = min((count for count in self.counts if count.size == size), key=lambda count: count.same)
        scores = "" if found.right is None else f", {found.right} right where the model has {found.model_right}"
        return f"at {size} px first class equal on {found.same} of {found.images}{scores}"


@dataclass(frozen=True)
class Pictures:
    """Real images, uint8 (c, h, w), with the class of each, or -1."""

    images: Sequence[UInt8[Tensor, "c _ _"]]
    classes: Sequence[int]
    source: str


def trials(referee: Referee, pictures: Pictures, sizes: Sequence[Size]) -> list[Trial]:
    """At each size the first pictures as they are, then two and three images of ``SHAPES``."""
    first, second = pictures.images[0], pictures.images[-1]
    batches = [_channels_last([first])]
    for (height, width), count in zip(SHAPES, (2, 3), strict=True):
        each = (first, second.flip(2), first.flip(1))[:count]
        batches.append(_channels_last([resize(image, Size(height, width)) for image in each]))
    return [Trial(images, size, referee.ask(images, size)) for size in sizes for images in batches]


def check(name: str, engine: str, ask: Asked, given: Sequence[Trial], activation: Activation) -> list[Check]:
    """Every trial, asked of a file. Raises Wrong for the first that differs."""
    found = []
    for trial in given:
        said = ask(trial.images, trial.size)
        shape = "x".join(map(str, trial.images.shape[1:3]))
        where = f"{engine}, {len(trial.images)} images of {shape} px seen at {trial.size} px"
        if said.shape != trial.truth.shape or not said.isfinite().all():
            raise Wrong(f"{name} answers {list(said.shape)}, or with numbers that are not finite ({where})")
        moved = motion([each.truth for each in given if each.size == trial.size], activation)
        logit = float((_logits(said, activation) - _logits(trial.truth, activation)).abs().max())
        far = 0.0 if activation == "none" else float((said - trial.truth).abs().max())
        if far > PROBABILITY or logit > max(LOGIT, OF_MOTION * moved):
            raise Wrong(
                f"{name} answers otherwise than its model: a probability is {far:.1g} off (at most {PROBABILITY:g}), a "
                f"logit {logit:.1g} where images move it by {moved:.1g} ({where}); "
                "nothing of it is left: try --to torch or safetensors"
            )
        found.append(Check(engine, str(trial.size), f"{len(trial.images)} of {shape}", far, logit, moved))
    return found


def count(engine: str, ask: Asked, referee: Referee, pictures: Pictures, size: Size) -> Count:
    """The file and the model on real images, each at its own shape."""
    same = right = model_right = 0
    apart: list[Tensor] = []
    known = all(each >= 0 for each in pictures.classes)
    for image, label in zip(pictures.images, pictures.classes, strict=True):
        batch = _channels_last([image])
        said, truth = ask(batch, size)[0], referee.ask(batch, size)[0]
        same += int(said.argmax() == truth.argmax())
        right, model_right = right + int(said.argmax() == label), model_right + int(truth.argmax() == label)
        apart.append((said - truth).abs())
    every = torch.stack(apart)
    mean, most = float(every.mean()), float(every.max())
    scores = (right, model_right) if known else (None, None)
    return Count(engine, str(size), len(apart), same, scores[0], scores[1], mean, most)


def check_int8(name: str, given: Sequence[Count]) -> None:
    """Raises Wrong where int8 gives too many images another first class."""
    for each in given:
        if each.same < SAME * each.images or not math.isfinite(each.most):
            raise Wrong(
                f"{name}: int8 keeps the first class of {each.same} of {each.images} images at {each.size} px in "
                f"{each.engine}, and {SAME:.0%} is the least: leave --int8 out"
            )


def _channels_last(images: Sequence[UInt8[Tensor, "c h w"]]) -> UInt8[Tensor, "b h w c"]:
    return torch.stack([image.permute(1, 2, 0) for image in images]).contiguous()


def _logits(said: Float32[Tensor, "b k"], activation: Activation) -> Tensor:
    """What probabilities were made of: of one class out of all, up to a constant of the image."""
    said = said.double()
    if activation == "softmax":
        logs = said.clamp_min(_TINY).log()
        return logs - logs.mean(1, keepdim=True)
    return said.logit().clamp(-_CLEAR, _CLEAR) if activation == "sigmoid" else said


def motion(answers: Sequence[Tensor], activation: Activation) -> float:
    """The farthest that a logit is from its mean over the images."""
    logits = torch.cat([_logits(answer, activation) for answer in answers])
    return float((logits - logits.mean(0)).abs().max())
