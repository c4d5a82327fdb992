"""DINO: without labels, every view learns what a slow copy of the student says of two others.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv:2104.14294, section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anyres.flow import Batch
from anyres.training.objective_config import DinoConfig
from anyres.training.objectives.objective import Backbone, Term, to_float32, view_names
from anyres.training.parallel import GlooBatchNorm
from anyres.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

NUM_GLOBAL_VIEWS = 2
"""So many views, the first and largest, are seen by the teacher."""


class StudentWithHead(nn.Module):
    """A backbone without classifier, and a head: view (b, c, h, w) -> scores of prototypes (b, out_dim)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        assert isinstance(self.backbone, Backbone)
        pooled = self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)
        scores: Tensor = self.head(pooled)
        return scores

    def no_weight_decay(self) -> set[str]:
        """The backbone's exceptions under their names here."""
        assert isinstance(self.backbone, Backbone)
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


class MomentumTeacher:
    """A copy of the student that follows it slowly, and the center of its scores.

    It drops nothing out; its batch norm, if it has any, normalizes by the batch and keeps statistics of its own, as the
    official teacher does. ``dtype``: what its matrix products are made in (None: float32).
    """

    def __init__(self, student: StudentWithHead, config: DinoConfig, dtype: torch.dtype | None = None) -> None:
        self.copy = copy.deepcopy(student).requires_grad_(False).eval()
        for module in self.copy.modules():
            if isinstance(module, _BatchNorm | GlooBatchNorm):
                module.train()
        device = next(student.parameters()).device
        self.copy.head.register_buffer("centre", torch.zeros(config.out_dim, device=device))  # its name in checkpoints
        self.config, self.dtype = config, dtype
        self.reset(config.teacher_temperature)

    @property
    def center(self) -> Float[Tensor, " k"]:
        """What is subtracted from its scores."""
        return self.copy.head.get_buffer("centre")

    def reset(self, temperature: float) -> None:
        """Forget the scores of an earlier step, which may have come to nothing."""
        self.temperature = temperature
        self.total, self.count = torch.zeros_like(self.center), 0

    @torch.no_grad()
    def __call__(self, view: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """What the student is to say of the image's other views: shares that sum to one."""
        with torch.autocast(view.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            scores = to_float32(self.copy(view))
        self.total += scores.sum(0)
        self.count += len(scores)
        shares: Tensor = ((scores - self.center) / self.temperature).softmax(-1)
        return shares

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float, accelerator: Accelerator) -> None:
        """Move the parameters towards the student's, and the center towards the mean of all processes' scores."""
        for mine, its in zip(self.copy.parameters(), student.parameters(), strict=True):
            mine.lerp_(its, 1 - momentum)
        mean = accelerator.reduce(self.total / self.count, "mean")
        self.center.lerp_(mean, 1 - self.config.center_momentum)


class Dino:
    """The mean cross-entropy over all pairs of a global view, seen by the teacher, and another view of the image."""

    name = "dino"

    def __init__(
        self, backbone: nn.Module, head: nn.Module, config: DinoConfig, dtype: torch.dtype | None = None
    ) -> None:
        projected = StudentWithHead(backbone, head)
        self.trained: nn.Module = projected
        self.student: nn.Module = projected
        self.config = config
        self.teacher = MomentumTeacher(projected, config, dtype)
        # two files, so that the backbone can be loaded as weights
        copied = self.teacher.copy
        self.copies: Mapping[str, nn.Module] = {"teacher": copied.backbone, "teacher_head": copied.head}
        self.published: nn.Module | None = copied.backbone
        self.wholes: Sequence[nn.Module] = (copied,)

    def begin(self, plan: Plan, step: int) -> None:
        """Give the teacher its temperature."""
        self.teacher.reset(self.config.temperature_at(step // plan.steps_per_epoch))

    def terms(self, student: Callable[[Tensor], Tensor], batch: Batch) -> Iterator[Term]:
        """One term per view, largest first."""
        lessons = [self.teacher(view) for view in batch.views[:NUM_GLOBAL_VIEWS]]
        pairs = NUM_GLOBAL_VIEWS * (len(batch.views) - 1)
        for i, view in enumerate(batch.views):
            others = [lesson for j, lesson in enumerate(lessons) if j != i]
            loss = self_distillation(to_float32(student(view)), others, self.config.student_temperature)
            name = f"dino/{view_names(batch)[i]}"
            yield Term(name, loss / pairs, {name: loss.detach() / len(others)})

    def hold(self, plan: Plan, step: int) -> None:
        """Leave the head's last layer as it is in the first epochs."""
        if step < self.config.freeze_last_layer * plan.steps_per_epoch:
            for name, parameter in self.trained.named_parameters():
                if name.startswith("head.last_layer."):
                    parameter.grad = None

    def follow(self, plan: Plan, step: int, accelerator: Accelerator) -> None:
        """Let the teacher follow the student."""
        self.teacher.update(self.trained, self.config.momentum_at(step / plan.steps), accelerator)


def self_distillation(
    scores: Float[Tensor, "b k"], lessons: Sequence[Float[Tensor, "b k"]], temperature: float
) -> Tensor:
    """The cross-entropy of a view's scores at the temperature with each lesson, summed over them (DINO, equation 3).

    Each is a mean over the batch; a lesson is a teacher's shares, which sum to one.
    """
    log_shares = F.log_softmax(scores / temperature, -1)
    return -(torch.stack(list(lessons)).sum(0) * log_shares).sum(-1).mean()
