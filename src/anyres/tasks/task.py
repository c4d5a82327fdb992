"""What a task is: everything that knows what a target is, behind one object.

A task reads the target of an image, lets it follow each view, says what a wrong answer costs, scores a model and puts
its answers into words. The loop, resume, the loader, the curve, the report and the command line know none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from anyres.data.mix_config import MixConfig
from anyres.data.sources import Source, Wanted
from anyres.data.views_config import ViewsConfig
from anyres.evaluation.classes import Names
from anyres.evaluation.evaluator import Evaluator, ImageScores
from anyres.evaluation.page import SampleAnswer, Section
from anyres.flow import Batch, Geometry, Metric, Record, Size, SizeResult, TargetReader, Targets
from anyres.training.objectives import Objective, ObjectiveConfig, ObjectiveParts, Teacher
from anyres.training.plan import TrainConfig
from anyres.training.schedule import OptimConfig


@dataclass(frozen=True)
class Answer:
    """What a model says of one image: ``cells`` for a table, by column; ``values`` for JSON.

    ``drawn``: the image, uint8 (c, h, w), -> what is drawn of the answer, as the content of picture files by the ending
    of their names, such as ``overlay.png``; None: nothing can be drawn.
    """

    cells: Mapping[str, str]
    values: Mapping[str, Any]
    drawn: Callable[[Tensor], Mapping[str, bytes]] | None = None

    @property
    def line(self) -> str:
        """For a terminal."""
        return ", ".join(self.cells.values())


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is put: ``top``: so many of the likeliest classes, or objects; ``threshold``: of several labels or
    objects, every one above this probability (None: the task's own). ``of_size``: the image's own, for answers that
    have a place in it (None: that of the output); ``geometry``: where the pixels that the model saw come from (None:
    not from one view alone)."""

    top: int = 3
    threshold: float | None = None
    of_size: Size | None = None
    geometry: Geometry | None = None


Output = Tensor | Mapping[str, Tensor]
"""What a network says of one image: a tensor, or several by name."""


@dataclass(frozen=True)
class Configs:
    """The parts of a recipe that have to suit each other. ``head``: the options of what a task builds on the
    backbone."""

    objective: ObjectiveConfig
    views: ViewsConfig
    mix: MixConfig
    optim: OptimConfig
    train: TrainConfig
    head: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """Labelled images to compare with, for a task that scores so: ``batches()`` opens them at the size in hand, ``n``
    is how many there are, ``classes`` how many classes they have."""

    batches: Callable[[], Iterable[Batch]]
    n: int
    classes: int


@dataclass(frozen=True)
class Shown:
    """The images that were scored, for a task that draws them: where they come from, and their pixels by position,
    uint8 (c, h, w)."""

    source: Source
    pixels: Callable[[int], Tensor]


@runtime_checkable
class Task(Protocol):
    """One task, for images of ``classes``. A frozen dataclass, so that it can be sent to the loader's processes.

    ``tasks/image.py`` has what tasks with one target per image do alike.
    """

    name: ClassVar[str]
    """How recipes call it: ``task: NAME``."""
    wanted: ClassVar[Wanted]
    """What ``read`` wants of a source: class indices in every record; the same where there are labels at all; or the
    labels as they are written."""
    metrics: ClassVar[Sequence[Metric]]
    """What is measured; the first is the headline."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; () where there are none."""
        ...

    # what the loader's processes do (flow.TargetReader)
    def read(self, record: Record) -> Any: ...

    def view(self, target: Any, geometry: Geometry) -> Any: ...

    def collate(self, targets: Sequence[Sequence[Any]]) -> Targets: ...

    def scoring(self) -> TargetReader:
        """What reads the targets that answers are scored by, for the loader's processes: the task itself, or another
        where scoring wants something else than training."""
        ...

    # data
    def learning_from(self, source: Source) -> Any:
        """The task with what it has to know of the images it is trained on, beside their classes."""
        ...

    def fit(self, source: Source, names: Names) -> Source:
        """``source`` with its targets counted as a model does that knows its classes by ``names``. Raises UserError
        where they do not go together."""
        ...

    def mixed(self, batch: Batch, how: MixConfig, rng: np.random.Generator) -> Batch:
        """The batch with its images mixed, if ``how`` says so and this task can be. Raises UserError if it cannot."""
        ...

    # training
    def settle(self, configs: Configs) -> ObjectiveConfig:
        """The objective with what was left open decided. Raises UserError for what has no meaning here."""
        ...

    def with_loss(self, loss: str) -> Any:
        """The task with the loss that ``settle`` has decided on (``objective.loss``)."""
        ...

    def with_head(self, head: Mapping[str, Any]) -> Any:
        """The task with what the recipe's ``head`` learns of the images' targets. Raises UserError where they lack
        it."""
        ...

    def build(self, backbone: Callable[[int], nn.Module], head: Mapping[str, Any]) -> nn.Module:
        """The network, freshly initialized: ``backbone(k)`` is the recipe's with k outputs, or none where k is 0;
        ``head``: options of what is built on it. Raises UserError for options that there are not."""
        ...

    def begun(self, network: nn.Module) -> nn.Module:
        """The part of the network that given weights fill at the start of a training: all of it, or its backbone."""
        ...

    def objective(self, parts: Parts) -> Objective:
        """What is minimized."""
        ...

    # evaluation
    def can_score(self, source: Source) -> bool:
        """Whether images of ``source`` say how good a model is."""
        ...

    compares: ClassVar[bool]
    """Whether it scores by comparing with labelled training images, which ``evaluators`` is then given."""

    def evaluators(self, model: nn.Module, reference: Reference | None) -> Sequence[Evaluator]:
        """What scores a model; the scores per image of the first are kept."""
        ...

    def scored_by(self) -> str:
        """How the headline comes about, for people, after its name: " of ...", or nothing."""
        ...

    # words
    def naming(self, source: Source) -> Any:
        """The task with the class names in which it answers for images of ``source``."""
        ...

    def describe(self, source: Source) -> Iterable[str]:
        """What a run is told at its start."""
        ...

    def summary(self, scores: ImageScores, size: Size) -> list[str]:
        """What to say below the table of a model that scored so at its best size."""
        ...

    def write_tables(self, by_size: Mapping[Size, ImageScores], title: str, folder: Path) -> list[Path]:
        """Write tables and pictures of what was right and wrong; returns them."""
        ...

    def sections(self, scores: ImageScores, size: Size, shown: Shown) -> list[Section]:
        """What the report shows of the scores at the model's best size, and of the images ``shown``."""
        ...

    def curve_sections(self, points: Sequence[SizeResult]) -> list[Section]:
        """What the report shows of all sizes beside the curve; a picture is written as ``curve_ANCHOR.png`` too."""
        ...

    def sample(self, scores: ImageScores, place: int, model: str, size: Size) -> SampleAnswer:
        """What was answered for the image at ``place`` of the scores, for the report."""
        ...

    def truth(self, source: Source, index: int) -> str:
        """What image ``index`` of a source is, for people."""
        ...

    activation: ClassVar[Literal["softmax", "sigmoid", "none"]]
    """What makes probabilities of the model's output, where that is a tensor."""

    takes_threshold: ClassVar[bool]
    """Whether an answer is every label or object above a probability, which a user may choose."""

    def answer(self, output: Any, options: AnswerOptions) -> Answer:
        """The model's ``Output`` for one image, float32 (k,), after ``activation`` -> what it says."""
        ...

    def joined(self, parts: Iterable[tuple[Any, Geometry]], options: AnswerOptions) -> Answer:
        """The same of a picture that the model saw in overlapping parts: of each the ``Output``, and where in the
        picture its view's pixels come from. Raises UserError for a task that answers for whole images."""
        ...

    def document(self, answered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What a JSON file of answers has: ``images``, which are the values of each with its file, and what another
        program wants beside."""
        ...

    def about(self) -> dict[str, Any]:
        """What a file of weights has to say so that ``open_task`` makes this task again."""
        ...


@dataclass(frozen=True)
class Parts:
    """What an objective is made of: the network, its configuration; a ``teacher``, and whether the network has a head
    for it; ``seed`` and ``dtype`` (None: float32) of what is built beside."""

    model: nn.Module
    config: ObjectiveConfig
    teacher: Teacher | None = None
    two_heads: bool = False
    seed: int = 0
    dtype: torch.dtype | None = None

    def for_loss(self, loss: Any) -> ObjectiveParts:
        """The same for an objective of training/objectives."""
        return ObjectiveParts(self.model, self.config, loss, self.teacher, self.two_heads)
