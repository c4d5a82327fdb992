"""Labels at every view, a teacher beside them, and scale consistency between neighboring views.

ResFormer: Scaling ViTs with Multi-Resolution Training (Tian et al., CVPR 2023), section 3: the largest view learns from
the labels alone, every smaller one also from the feature of the view just above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from anyres.flow import Batch
from anyres.training.objective_config import ObjectiveConfig
from anyres.training.objectives.consistency import distance
from anyres.training.objectives.distillation import distillation_loss
from anyres.training.objectives.objective import (
    Backbone,
    Student,
    StudentOutput,
    TaskLoss,
    Teacher,
    Term,
    to_float32,
    view_names,
)
from anyres.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


class Supervised:
    """The task's loss at every view; with a teacher, (1 - alpha) x labels + alpha x teacher; with consistency, plus
    ``weight`` x distance to the detached feature of the view before (none for the first); each divided by the number
    of views."""

    name = "supervised"

    def __init__(
        self,
        model: nn.Module,
        config: ObjectiveConfig,
        loss: TaskLoss,
        teacher: Teacher | None = None,
        two_heads: bool = False,
    ) -> None:
        assert isinstance(model, Backbone)
        self.trained: nn.Module = model
        self.student: nn.Module = Student(model, config.target, two_heads=two_heads)
        self.copies: Mapping[str, nn.Module] = {}
        self.published: nn.Module | None = None
        self.wholes: Sequence[nn.Module] = ()
        self.config, self.loss, self.teacher = config, loss, teacher

    def begin(self, plan: Plan, step: int) -> None:
        """Nothing changes with the step."""

    def terms(self, student: Callable[[Tensor], StudentOutput], batch: Batch) -> Iterator[Term]:
        """One term per view, largest first."""
        config, names = self.config, view_names(batch)
        above: Tensor | None = None
        for i, view in enumerate(batch.views):
            logits, taught, feature = (to_float32(x) for x in student(view))
            label, loss = self.loss(logits, batch.targets.of(i))
            shown = {f"{label}/{names[i]}": loss.detach()}
            if self.teacher is not None:
                lesson = distillation_loss(taught, to_float32(self.teacher(view)), config.distillation)
                shown[f"distillation/{names[i]}"] = lesson.detach()
                loss = (1 - config.distillation.alpha) * loss + config.distillation.alpha * lesson
            if above is not None and config.consistency != "none":
                apart = distance(feature, above, config.consistency, config.temperature)
                shown[f"consistency/{names[i]}"] = apart.detach()
                loss = loss + config.weight * apart
            above = feature.detach()
            yield Term(names[i], loss / len(batch.views), shown)

    def hold(self, plan: Plan, step: int) -> None:
        """Every parameter moves."""

    def follow(self, plan: Plan, step: int, accelerator: Accelerator) -> None:
        """Nothing follows the model."""
