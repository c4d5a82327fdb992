"""No labels: DINO, scored by nearest neighbors where images have one label each after all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anyres.config import UserError
from anyres.data.sources import Source, Wanted
from anyres.evaluation.classes import Names
from anyres.evaluation.evaluator import EvalSettings, Evaluator
from anyres.evaluation.metrics import Scores, score
from anyres.evaluation.probe import NUM_NEIGHBORS, NeighborClassifier, Pooled, pool
from anyres.flow import Batch, Record
from anyres.models.contract import Backbone
from anyres.models.dino import ProjectionHead
from anyres.tasks.classify import Classify
from anyres.tasks.image import refuse_head
from anyres.tasks.task import Answer, AnswerOptions, Configs, Parts, Reference
from anyres.training.objectives import Objective, ObjectiveConfig
from anyres.training.objectives.dino import Dino


@dataclass(frozen=True)
class NearestNeighbors:
    """Top-1 of the nearest of labelled images, by the features of a backbone."""

    backbone: Backbone
    reference: Reference

    def run(self, model: nn.Module, batches: Iterable[Batch], how: EvalSettings) -> Scores:
        """``model`` is the backbone. See ``evaluation.probe.Neighbours``."""
        assert model is self.backbone
        mine = pool(self.backbone, self.reference.batches(), self.reference.n, how)
        vectors, target = how.gather(mine.vectors.to(how.device)), how.gather(mine.target.to(how.device))
        known = target >= 0  # the rest fills up
        bank = Pooled(vectors[known], target[known])
        answering = NeighborClassifier(self.backbone, bank, self.reference.classes, how.device)
        return score(answering, batches, how)


@dataclass(frozen=True)
class Unlabelled(Classify):
    """Training without labels; what is scored, described and drawn is top-1 of nearest neighbors."""

    name: ClassVar[str] = "unlabelled"
    wanted: ClassVar[Wanted] = "optional"
    compares: ClassVar[bool] = True

    def read(self, record: Record) -> int:
        """The index of the image's class, to score by; -1 where there is none, or several."""
        return record.target if isinstance(record.target, int) else -1

    def fit(self, source: Source, names: Names) -> Source:
        """Any set with one label for each image: neighbors are asked, not a classifier."""
        if source.labelling == "several":
            raise UserError(f"images of {source.name} have several labels: nearest neighbours and probes want one each")
        return source

    def settle(self, configs: Configs) -> ObjectiveConfig:
        """The objective as it is. Raises UserError for what does not go with training without labels."""
        only, train = "objective.dino", configs.train
        if configs.objective.dino is None:
            raise UserError("task=unlabelled wants an objective without labels: set objective.dino={}")
        if configs.mix.on:
            raise UserError(f"{only} has no labels to mix or smooth: set mix.mixup, mix.cutmix and mix.smoothing to 0")
        if len(configs.views.sizes) < 2 or configs.views.share:
            raise UserError(
                f"{only} compares views cut each by itself: give two views.sizes or more, views.share=false"
            )
        if train.ema_decay is not None:
            raise UserError(f"{only} publishes its teacher, an average already: set train.ema_decay=null")
        if train.trainable != "all" or train.freeze_blocks or configs.optim.layer_decay < 1:
            raise UserError(
                f"{only} trains all layers alike: set train.trainable=all, train.freeze_blocks=0, optim.layer_decay=1"
            )
        warmup = configs.objective.dino.warmup_epochs
        if warmup > train.epochs:
            raise UserError(f"{only}.warmup_epochs={warmup} is more than train.epochs={train.epochs}")
        return configs.objective

    def build(self, backbone: Callable[[int], nn.Module], head: Mapping[str, Any]) -> nn.Module:
        """A backbone without classifier."""
        refuse_head(self.name, head)
        return backbone(0)

    def objective(self, parts: Parts) -> Objective:
        """DINO, with a projection head drawn from the recipe's seed."""
        how, model = parts.config.dino, parts.model
        assert how is not None
        assert isinstance(model, Backbone)
        torch.manual_seed(parts.seed)
        head = ProjectionHead(
            model.num_features, how.out_dim, how.hidden, how.bottleneck, norm_last_layer=how.norm_last_layer
        )
        return Dino(model, head.to(next(model.parameters()).device), how, parts.dtype)

    def can_score(self, source: Source) -> bool:
        """Nearest neighbors want one label for each image."""
        return bool(source.classes) and source.labelling == "one"

    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[Evaluator]:
        """Nearest neighbors among ``reference``."""
        assert reference is not None
        assert isinstance(model, Backbone)
        return (NearestNeighbors(model, reference),)

    def scored_by(self) -> str:
        """By neighbors."""
        return f" of the {NUM_NEIGHBORS} nearest training images"

    def with_loss(self, loss: str) -> Unlabelled:
        """There is no label to lose by."""
        return self

    def naming(self, source: Source) -> Unlabelled:
        """With the classes of the images: neighbors answer with those."""
        return replace(self, classes=source.classes)

    def describe(self, source: Source) -> Iterable[str]:
        """How a run without labels is scored."""
        if not self.can_score(source):
            why = "images have several labels" if source.classes else "there are none"
            yield f"without labels, and nothing to score by, as {why}: the newest checkpoints are kept, not the best"
            return
        yield f"without labels; scored by the {NUM_NEIGHBORS} nearest of the training images, by the teacher's features"

    def answer(self, output: Tensor, options: AnswerOptions) -> Answer:
        """Raises UserError: it has learnt no classes."""
        raise UserError("a model trained without labels has no classifier: it cannot name classes")

    def about(self) -> dict[str, Any]:
        """The task; its classes were not learnt."""
        return {"task": self.name, "classes": ()}
