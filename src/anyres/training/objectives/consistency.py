"""Scale consistency: how far a view's feature is from that of the next larger view (ResFormer, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyres.training.objectives.distillation import soft_distillation

Distance = Literal["smooth_l1", "l2", "cosine", "soft"]


def distance(
    student: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"], kind: Distance, temperature: float = 1.0
) -> Tensor:
    """A scalar, 0 when the features agree.

    ``smooth_l1`` whitens the teacher first (layer norm over channels, no affine, eps 1e-6), as ResFormer's code does;
    ``l2`` and ``cosine`` do not. ``soft`` is KL(teacher || student) at the temperature, times its square, per element
    (the official code gives log-probabilities as if they were probabilities; this is the KL it meant).
    """
    if kind == "smooth_l1":
        return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6))
    if kind == "l2":
        return F.mse_loss(student, teacher)
    if kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=-1, eps=1e-6).mean()
    return soft_distillation(student, teacher, temperature, "element")
