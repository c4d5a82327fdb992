"""What every evaluation is: a model, batches of one size -> what it said of each image, and metrics with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from anyres.config import UserError
from anyres.flow import Batch, Estimate

Gather = Callable[[Tensor], Tensor]


def keep_local(local: Tensor) -> Tensor:
    """What one process gathers: its own."""
    return local


@dataclass(frozen=True)
class EvalSettings:
    """How a model is run: on ``device``, in ``autocast`` (None: float32).

    ``gather`` concatenates a tensor (n, ...) over processes (``accelerator.gather``). Where n differs between them,
    each part is filled up to the longest, with -1.
    """

    device: torch.device
    autocast: torch.dtype | None = None
    gather: Gather = keep_local


@runtime_checkable
class ImageScores(Protocol):
    """What a model said of each of n images, in the order of the dataset, every image once."""

    @property
    def index(self) -> Int64[np.ndarray, " n"]:
        """Positions in the dataset, ascending."""
        ...

    @property
    def n(self) -> int: ...

    def estimates(self) -> dict[str, Estimate]:
        """Metrics by key; shares in [0, 1] where the metric's unit is %."""
        ...


@dataclass(frozen=True, eq=False)
class ImageValues:
    """One number for each image, of which the mean is the metric ``key``: an error, an overlap, a distance."""

    key: str
    index: Int64[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]

    @property
    def n(self) -> int:
        """How many images were scored."""
        return len(self.index)

    def estimates(self) -> dict[str, Estimate]:
        """The mean and its 95 % interval, by 1000 bootstrap resamples of the images, always the same draws."""
        mean = float(self.values.mean(dtype=np.float64))
        if self.n < 2:
            return {self.key: Estimate(mean)}
        draws = np.random.default_rng(0)
        means = [self.values[draws.integers(self.n, size=self.n)].mean(dtype=np.float64) for _ in range(1000)]
        low, high = np.percentile(means, (2.5, 97.5))
        return {self.key: Estimate(mean, float(low), float(high))}


@runtime_checkable
class Evaluator(Protocol):
    """One way to score a model; a task may have several, whose metrics are put together."""

    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> ImageScores:
        """Score ``model`` on ``batches`` (first view, float (b, c, H, W), already normalized). The model's mode is
        restored. Raises UserError where nothing can be scored or an answer is not finite."""
        ...


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    how: EvalSettings,
    judge: Callable[[Tensor, Any], tuple[Tensor, ...]],
) -> list[Shaped[np.ndarray, "n ..."]]:
    """Positions in the dataset, ascending and each once, and beside them what ``judge(output, target)`` makes of the
    model's output in float32 (b, ...) and the target of the first view: tensors (b, ...).

    Images met twice, as a distributed sampler deals them to fill its last batch, count once. Raises UserError where
    there is no batch.
    """
    columns: list[tuple[Tensor, ...]] = []
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            pixels = batch.views[0].to(how.device, non_blocking=True)
            target = batch.targets.to(how.device).of(0)
            with torch.autocast(how.device.type, dtype=how.autocast, enabled=how.autocast is not None):
                output = model(pixels)
            columns.append((batch.index.to(how.device), *judge(output.float(), target)))
    if not columns:
        raise UserError("there is no image to score: the split is empty")
    joined = [how.gather(torch.cat(column)).cpu().numpy() for column in zip(*columns, strict=True)]
    index, first = np.unique(joined[0], return_index=True)
    first = first[index >= 0]  # the rest fills up
    return [column[first] for column in joined]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode inside, every submodule in its own former mode afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(before[0][1])  # for what a module does beyond its flag
        for module, training in before:
            module.training = training
