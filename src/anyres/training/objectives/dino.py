"""DINO's two networks: a student with a projection head, and the slow copy of it that teaches.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv:2104.14294 (recipes X1,
X3). The loss is in ``losses``, its terms and settings in ``objective``.
"""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from anyres.training.objectives.objective import Backbone, DinoConfig, wide
from anyres.training.parallel import GlooBatchNorm


class Projected(nn.Module):
    """A backbone without classifier, and a head: view (b, 3, h, w) -> scores of prototypes (b, out_dim)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        assert isinstance(self.backbone, Backbone)
        pooled = self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True)
        scores: Tensor = self.head(pooled)
        return scores

    def no_weight_decay(self) -> set[str]:
        """The backbone's exceptions under their names here."""
        assert isinstance(self.backbone, Backbone)
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}


class MomentumTeacher:
    """A copy of the student that follows it slowly, and the centre of its scores.

    A step goes: ``begin``, a call for each view that it is to see, and once the student is updated, ``follow``. It
    drops nothing out; its batch norm, if it has any, normalises by the batch and keeps statistics of its own, as the
    official teacher does (traps X-10, X-11). ``dtype``: what its matrix products are made in (None: float32).
    """

    def __init__(self, student: Projected, config: DinoConfig, dtype: torch.dtype | None = None) -> None:
        self.projected = copy.deepcopy(student).requires_grad_(False).eval()
        for module in self.projected.modules():
            if isinstance(module, _BatchNorm | GlooBatchNorm):
                module.train()
        device = next(student.parameters()).device
        self.projected.head.register_buffer("centre", torch.zeros(config.out_dim, device=device))
        self.config, self.dtype = config, dtype
        self.begin(config.teacher_temperature)

    @property
    def centre(self) -> Float[Tensor, " k"]:
        """What is subtracted from its scores."""
        return self.projected.head.get_buffer("centre")

    def begin(self, temperature: float) -> None:
        """Forget the scores of an earlier step, which may have come to nothing."""
        self.temperature = temperature
        self.total, self.count = torch.zeros_like(self.centre), 0

    @torch.no_grad()
    def __call__(self, view: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """What the student is to say of the image's other views: shares that sum to one."""
        with torch.autocast(view.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            scores = wide(self.projected(view))
        self.total += scores.sum(0)
        self.count += len(scores)
        shares: Tensor = ((scores - self.centre) / self.temperature).softmax(-1)
        return shares

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float, accelerator: Accelerator) -> None:
        """Move the parameters towards the student's, and the centre towards the mean of all processes' scores."""
        for mine, its in zip(self.projected.parameters(), student.parameters(), strict=True):
            mine.lerp_(its, 1 - momentum)
        mean = accelerator.reduce(self.total / self.count, "mean")
        self.centre.lerp_(mean, 1 - self.config.centre_momentum)


def drop_last_gradient(student: nn.Module) -> None:
    """Leave the head's last layer as it is in this step."""
    for name, parameter in student.named_parameters():
        if name.startswith("head.last_layer."):
            parameter.grad = None
