"""What tasks with one target for the whole image do alike.

A task of yours may take it all over and say only what differs: ``read``, ``loss``, ``evaluators`` and ``answer``.
(The one place, beside nn.Module, where implementation is inherited: the slots are many, and most tasks fill few.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from anyres.config import UserError
from anyres.data.mix_config import MixConfig
from anyres.data.sources import Source, Wanted
from anyres.evaluation.classes import Names
from anyres.evaluation.evaluator import Evaluator, ImageScores, ImageValues
from anyres.evaluation.page import SampleAnswer, Section
from anyres.flow import Batch, Geometry, Labels, Metric, Record, Size, SizeResult, TargetReader, Targets
from anyres.tasks.task import Answer, AnswerOptions, Configs, Parts, Reference, Shown
from anyres.training.objectives import Objective, ObjectiveConfig, registered_objective
from anyres.training.objectives.cosub import Cosub
from anyres.training.objectives.supervised import Supervised


@dataclass(frozen=True)
class ImageTask(ABC):
    """One target for each image, the same in every view; a network with ``outputs`` numbers; the objective's terms."""

    name: ClassVar[str]
    metrics: ClassVar[Sequence[Metric]]
    wanted: ClassVar[Wanted] = "classes"
    compares: ClassVar[bool] = False
    activation: ClassVar[Literal["softmax", "sigmoid", "none"]] = "none"
    takes_threshold: ClassVar[bool] = False

    classes: tuple[str, ...] = ()

    # to be said by each task

    @abstractmethod
    def read(self, record: Record) -> Any:
        """The target of an image."""

    @abstractmethod
    def loss(self, output: Tensor, target: Any) -> tuple[str, Tensor]:
        """The network's output for one view, float32 (b, k), and its target -> the loss's name, and a scalar."""

    @abstractmethod
    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[Evaluator]:
        """What scores a model."""

    @abstractmethod
    def answer(self, output: Any, options: AnswerOptions) -> Answer:
        """The network's output for one image, float32 (k,), after ``activation`` -> what it says."""

    # what follows from that

    @property
    def outputs(self) -> int:
        """So many numbers the network answers with: one for each class, or one."""
        return len(self.classes) or 1

    def view(self, target: Any, geometry: Geometry) -> Any:
        """The target of the image, whatever part of it a view shows."""
        return target

    def collate(self, targets: Sequence[Sequence[Any]]) -> Targets:
        """One tensor (b, ...) of the images' targets."""
        values = np.asarray([views[0] for views in targets])
        return Labels(torch.as_tensor(values.astype(np.float32) if values.dtype.kind == "f" else values))

    def scoring(self) -> TargetReader:
        """The task itself."""
        return self

    def learning_from(self, source: Source) -> ImageTask:
        """The task as it is."""
        return self

    def fit(self, source: Source, names: Names) -> Source:
        """The source as it is: it has no classes to be counted anew."""
        return source

    def mixed(self, batch: Batch, how: MixConfig, rng: np.random.Generator) -> Batch:
        """The batch as it is: ``settle`` has refused a recipe that mixes."""
        return batch

    def settle(self, configs: Configs) -> ObjectiveConfig:
        """The objective as it is. Raises UserError for what is for classes."""
        given = configs.objective
        if given.loss != "auto" or given.chosen in ("cosub", "dino") or given.distillation.kind != "none":
            raise UserError(
                f"task={self.name} has no classes: leave out objective.loss, objective.cosub, objective.dino and "
                "objective.distillation"
            )
        if given.class_weights != "none":
            raise UserError(f"task={self.name} has no class for each image: set objective.class_weights=none")
        if configs.mix.on:
            raise UserError(f"task={self.name} has no classes to mix: set mix.mixup, mix.cutmix and mix.smoothing to 0")
        return given

    def check_trainable(self, configs: Configs) -> None:
        """Raises UserError where only attention or a classifier is to be trained: new heads need all of theirs."""
        if configs.train.trainable != "all":
            raise UserError(
                f"task={self.name} trains its heads and all of the backbone but train.freeze_blocks: set "
                "train.trainable=all"
            )

    def with_loss(self, loss: str) -> ImageTask:
        """The task has one loss of its own."""
        return self

    def with_head(self, head: Mapping[str, Any]) -> ImageTask:
        """Whatever the head, the target is the same."""
        return self

    def build(self, backbone: Callable[[int], nn.Module], head: Mapping[str, Any]) -> nn.Module:
        """The recipe's network with ``outputs`` outputs. Raises UserError for options of a head: it has none."""
        refuse_head(self.name, head)
        return backbone(self.outputs)

    def begun(self, network: nn.Module) -> nn.Module:
        """All of it."""
        return network

    def objective(self, parts: Parts) -> Objective:
        """Labels, a teacher and consistency, or what the recipe names."""
        chosen = parts.config.chosen
        if chosen == "supervised":
            return Supervised(parts.model, parts.config, self.loss, parts.teacher, parts.two_heads)
        if chosen == "cosub":
            return Cosub(parts.model, self.pairing)
        return registered_objective(chosen)(parts.for_loss(self.loss))

    def pairing(self, first: Tensor, second: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Cosub's two losses. Raises UserError: it is for classes."""
        raise UserError(f"objective.cosub is for classes, and task={self.name} has none")

    def can_score(self, source: Source) -> bool:
        """Every image has a target."""
        return True

    def scored_by(self) -> str:
        """By itself."""
        return ""

    def naming(self, source: Source) -> ImageTask:
        """The task itself: it knows its classes."""
        return self

    def describe(self, source: Source) -> Iterable[str]:
        """Nothing beside what every run is told."""
        return ()

    def summary(self, scores: ImageScores, size: Size) -> list[str]:
        """Nothing beside the table."""
        return []

    def write_tables(self, by_size: Mapping[Size, ImageScores], title: str, folder: Path) -> list[Path]:
        """None."""
        return []

    def sections(self, scores: ImageScores, size: Size, shown: Shown) -> list[Section]:
        """None."""
        return []

    def curve_sections(self, points: Sequence[SizeResult]) -> list[Section]:
        """None beside the curve of the headline."""
        return []

    def sample(self, scores: ImageScores, place: int, model: str, size: Size) -> SampleAnswer:
        """The image's own value of the metric, where there is one for each image."""
        text = f"{scores.key} {scores.values[place]:.3g}" if isinstance(scores, ImageValues) else ""
        return SampleAnswer(model, size, text)

    def truth(self, source: Source, index: int) -> str:
        """The labels of the image."""
        return ", ".join(source.labels(index)) or "nothing"

    def joined(self, parts: Iterable[tuple[Any, Geometry]], options: AnswerOptions) -> Answer:
        """Raises UserError: parts of an image have no label."""
        raise UserError(f"task={self.name} answers for whole images, which are not cut: leave out --tile")

    def document(self, answered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``images`` alone."""
        return {"images": list(answered)}

    def about(self) -> dict[str, Any]:
        """Task and classes."""
        return {"task": self.name, "classes": self.classes}


def refuse_head(name: str, head: Mapping[str, Any]) -> None:
    """Raises UserError for options of a head where a task builds none on the backbone."""
    if head:
        raise UserError(
            f"task={name} has a classifier alone: leave out head.{min(head)}, which is of task=segment and task=detect"
        )
