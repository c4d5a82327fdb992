"""What tasks whose targets are classes do alike: the loss, mixing, and classes counted as a model counts them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor

from anyres.config import UserError
from anyres.data.mix import mix
from anyres.data.mix_config import MixConfig
from anyres.data.sources import Labelling, Source
from anyres.evaluation.classes import Names, relabel
from anyres.flow import Batch, Labels
from anyres.tasks.image import ImageTask
from anyres.tasks.task import Configs
from anyres.training.objective_config import LabelLoss
from anyres.training.objectives import ObjectiveConfig
from anyres.training.objectives.labels import label_loss, pair_loss


@dataclass(frozen=True)
class LabelTask(ImageTask):
    """Images of a set with this ``labelling``; ``label`` is the loss."""

    labelling: ClassVar[Labelling]

    label: LabelLoss = "ce"

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
        return self.label, label_loss(output, target, self.label)

    def pairing(self, first: Tensor, second: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Cosub's two losses."""
        return pair_loss(first, second, target, self.label)
