"""A frozen teacher's decision, or its distribution, beside the labels: DeiT (Touvron et al., ICML 2021), section 4."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyres.training.objective_config import DistillationConfig


def distillation_loss(
    logits: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], config: DistillationConfig
) -> Tensor:
    """The student's logits for the teacher, and the teacher's logits -> a scalar."""
    if config.kind == "hard":
        return hard_distillation(logits, teacher)
    return soft_distillation(logits, teacher, config.temperature, config.over)


def hard_distillation(logits: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"]) -> Tensor:
    """Cross-entropy with the teacher's decision as the label (DeiT, equation 3)."""
    return F.cross_entropy(logits, teacher.argmax(-1))


def soft_distillation(
    logits: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], temperature: float, over: Literal["element", "batch"]
) -> Tensor:
    """KL(teacher || student) at the temperature, times its square.

    ``over`` says what the sum over batch and classes is divided by: ``element``, as DeiT's code does, both; ``batch``,
    as most other code does, the images alone, which is k times as large.
    """
    log_student, log_teacher = F.log_softmax(logits / temperature, -1), F.log_softmax(teacher / temperature, -1)
    total = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return total * temperature**2 / (logits.numel() if over == "element" else len(logits))
