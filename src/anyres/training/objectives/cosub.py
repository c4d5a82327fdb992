"""Cosub: two passes with other dropped blocks teach each other.

Touvron et al., "Co-training 2L Submodels for Visual Recognition", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anyres.flow import Batch
from anyres.training.objectives.objective import (
    Backbone,
    Pairing,
    Student,
    StudentOutput,
    Term,
    to_float32,
    view_names,
)
from anyres.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


class Cosub:
    """Both halves of one pass over the doubled batch, which drop other blocks, learn from the labels and each other."""

    name = "cosub"

    def __init__(self, model: nn.Module, pairing: Pairing) -> None:
        assert isinstance(model, Backbone)
        self.trained: nn.Module = model
        self.student: nn.Module = Student(model)
        self.copies: Mapping[str, nn.Module] = {}
        self.published: nn.Module | None = None
        self.wholes: Sequence[nn.Module] = ()
        self.pairing = pairing

    def begin(self, plan: Plan, step: int) -> None:
        """Nothing changes with the step."""

    def terms(self, student: Callable[[Tensor], StudentOutput], batch: Batch) -> Iterator[Term]:
        """One term per view, largest first."""
        for i, view in enumerate(batch.views):
            first, second = to_float32(student(torch.cat([view, view])).logits).chunk(2)  # (2b, k) -> (b, k) each
            own, mutual = self.pairing(first, second, batch.targets.of(i))
            name = view_names(batch)[i]
            shown = {f"labels/{name}": own.detach(), f"mutual/{name}": mutual.detach()}
            yield Term(name, (own + mutual) / len(batch.views), shown)

    def hold(self, plan: Plan, step: int) -> None:
        """Every parameter moves."""

    def follow(self, plan: Plan, step: int, accelerator: Accelerator) -> None:
        """Nothing follows the model."""
