"""What tasks whose targets are classes do alike: the loss, mixing, and classes counted as a model counts them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anyres.config import UserError
from anyres.data.mix import mix
from anyres.data.mix_config import MixConfig
from anyres.data.sources import Labelling, Source
from anyres.evaluation.classes import Names, relabel
from anyres.flow import Batch, Labels
from anyres.tasks.image import ImageTask
from anyres.tasks.task import Configs, Parts
from anyres.training.objective_config import LabelLoss
from anyres.training.objectives import Objective, ObjectiveConfig
from anyres.training.objectives.labels import label_loss, pair_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelTask(ImageTask):
    """Images of a set with this ``labelling``; ``label`` is the loss."""

    labelling: ClassVar[Labelling]

    label: LabelLoss = "ce"
    counts: tuple[int, ...] = ()
    """Training images of each class; () where the task was not made to learn from images."""
    weights: tuple[float, ...] = ()
    """How much each class counts in the loss; () for all alike."""

    def learning_from(self, source: Source) -> LabelTask:
        """With the number of images of each class."""
        found = Counter(
            index
            for record in source.records
            for index in (record.target if isinstance(record.target, tuple) else (record.target,))
        )
        return replace(self, counts=tuple(found[index] for index in range(len(self.classes))))

    def fit(self, source: Source, names: Names) -> Source:
        """Classes by name where the names are known, whichever of them have images."""
        if source.labelling != self.labelling:
            here = "one label" if source.labelling == "one" else "several labels"
            raise UserError(
                f"images of {source.name} have {here} each, and the model was trained to give them {self.labelling}: "
                "give --data images labelled as those were"
            )
        return relabel(source, names)

    def mixed(self, batch: Batch, how: MixConfig, rng: np.random.Generator) -> Batch:
        """Mixup, CutMix and label smoothing: targets are then shares of each class; as it is where ``how`` is off."""
        if not how.on:
            return batch
        views, target = mix(batch.views, batch.targets.of(0), len(self.classes), how, rng)
        return replace(batch, views=views, targets=Labels(target, per_view=target.ndim == 3))

    def settle(self, configs: Configs) -> ObjectiveConfig:
        """The objective with the task's own loss where none is chosen."""
        given = configs.objective
        return replace(given, loss=self.label if given.loss == "auto" else given.loss)

    def with_loss(self, loss: str) -> LabelTask:
        """The same with another loss of labels."""
        return replace(self, label=cast(LabelLoss, loss))

    def loss(self, output: Float[Tensor, "b k"], target: Any) -> tuple[str, Tensor]:
        """The labels' loss."""
        weights = _tensor(self.weights, output.device) if self.weights else None
        return self.label, label_loss(output, target, self.label, weights)

    def objective(self, parts: Parts) -> Objective:
        """Labels, each class with its weight, a teacher and consistency, or what the recipe names."""
        if parts.config.class_weights == "none":
            return super().objective(parts)
        weights = balanced_weights(self.counts)
        rare, common = (choose(range(len(weights)), key=weights.__getitem__) for choose in (max, min))
        log.info(
            "class weights: %s counts %.3g times in the loss, %s %.3g times",
            *(self.classes[rare], weights[rare], self.classes[common], weights[common]),
        )
        return ImageTask.objective(replace(self, weights=weights), parts)

    def pairing(self, first: Tensor, second: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Cosub's two losses."""
        return pair_loss(first, second, target, self.label)


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """mean / n for each class of n images, the mean being that of the classes that have some; 1 for one that has none.

    All are 1 where every class has as many images.
    """
    present = [count for count in counts if count]
    return tuple(sum(present) / len(present) / count if count else 1.0 for count in counts)


@cache
def _tensor(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied once: a step does not wait for it."""
    return torch.tensor(weights, device=device)
