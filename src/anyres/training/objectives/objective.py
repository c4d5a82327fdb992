"""What every objective is: named terms of a loss, each back-propagated before the next view runs.

An objective sees the student only by calling it with one view at a time. Whatever it has yielded by then is
back-propagated before that call, so the activations of one view are held, and the gradients of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.flow import Batch, Size
from anyres.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

Teacher = Callable[[Tensor], Tensor]
"""A view (b, c, h, w), normalized and mixed as the student sees it -> logits (b, k) over the student's classes."""


@dataclass(frozen=True)
class Term:
    """A named part of the loss: ``loss`` is a scalar whose gradient is added, in the weight it is to have.

    ``shown``: detached scalars for the log, by name, where the log is to show something else than ``loss`` itself.
    """

    name: str
    loss: Tensor
    shown: Mapping[str, Tensor] | None = None

    @property
    def logged(self) -> dict[str, Tensor]:
        """What the log shows of it."""
        return {self.name: self.loss.detach()} if self.shown is None else dict(self.shown)


@runtime_checkable
class TaskLoss(Protocol):
    """What the student's answer costs, by a task."""

    def __call__(self, output: Tensor, target: Any) -> tuple[str, Tensor]:
        """The answer (b, ...) of one view in float32, and the target of that view -> the loss's name, and a scalar."""
        ...


@runtime_checkable
class Pairing(Protocol):
    """The loss of two passes over the same images that teach each other: (own, mutual), two scalars to be added."""

    def __call__(self, first: Tensor, second: Tensor, target: Any) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class Objective(Protocol):
    """What a run minimizes, and what learns beside the model.

    A step goes: ``begin``, ``terms`` for each part of the batch, ``hold`` after the last backward pass, the update,
    ``follow``. All but ``terms`` may do nothing.
    """

    name: str
    trained: nn.Module
    """What the optimizer updates and a checkpoint calls ``model``."""
    student: nn.Module
    """What ``terms`` calls with a view: ``trained`` itself, or a module around it."""
    copies: Mapping[str, nn.Module]
    """Modules that follow the model and are saved beside it, by the name of their file."""
    published: nn.Module | None
    """The one of ``copies`` that is evaluated and published in place of ``trained``."""
    wholes: Sequence[nn.Module]
    """What is called beside the student, and so is split over processes with it: ``copies`` put together."""

    def begin(self, plan: Plan, step: int) -> None: ...

    def terms(self, student: Callable[[Tensor], Any], batch: Batch) -> Iterator[Term]:
        """Any number of terms for every view; their sum is minimized. A view's terms come before the next view is
        shown to ``student``, and what is carried over to another view is detached."""
        ...

    def hold(self, plan: Plan, step: int) -> None: ...

    def follow(self, plan: Plan, step: int, accelerator: Accelerator) -> None: ...


@runtime_checkable
class Exempting(Protocol):
    """A module that names parameters without weight decay."""

    def no_weight_decay(self) -> set[str]: ...


@runtime_checkable
class Backbone(Protocol):
    """The part of timm's contract that is used in training, and ``patch_tokens`` for the ``gap`` target."""

    def forward_features(self, x: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...
    def get_classifier(self) -> nn.Module: ...
    def no_weight_decay(self) -> set[str]: ...
    def patch_tokens(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class TwoHeaded(Protocol):
    """A backbone with a second classifier for the teacher's targets, such as the distilled DeiT."""

    def heads(self, pooled: Tensor) -> tuple[Tensor, Tensor]: ...


class StudentOutput(NamedTuple):
    """What Student returns of one view: logits for the labels (b, k), logits for the teacher (b, k), feature (b, c)."""

    logits: Tensor
    taught: Tensor
    feature: Tensor


class Student(nn.Module):
    """A backbone that also returns what a teacher teaches, and the feature by which its views are compared.

    The first two outputs are one and the same, but with ``two_heads``, for distilling into a model that is TwoHeaded:
    then each is its own head's. Feature by ``target``: ``cls``: the vector before the classifier (a ViT's normalized
    class token, else the pooled feature); ``gap``: the mean of the normalized patch tokens; ``logit``: the logits that
    the model answers with.
    """

    def __init__(self, model: Backbone, target: str = "cls", two_heads: bool = False) -> None:
        super().__init__()
        self.model = model
        self.target = target
        self.two_heads = two_heads

    def forward(self, x: Float[Tensor, "b c h w"]) -> StudentOutput:
        tokens = self.model.forward_features(x)
        pooled = self.model.forward_head(tokens, pre_logits=True)
        if self.two_heads:
            assert isinstance(self.model, TwoHeaded)
            logits, taught = self.model.heads(pooled)
            answer = (logits + taught) / 2
        else:
            logits = taught = answer = self.model.get_classifier()(pooled)
        if self.target == "cls":
            return StudentOutput(logits, taught, pooled)
        if self.target == "gap":
            return StudentOutput(logits, taught, self.model.patch_tokens(tokens).mean(1))
        return StudentOutput(logits, taught, answer)


def view_names(batch: Batch) -> list[str]:
    """What the log calls each view: its size; those of one size are counted, as ``96.1``, ``96.2``."""
    sizes = [str(Size(view.shape[-2], view.shape[-1])) for view in batch.views]
    return [size if sizes.count(size) == 1 else f"{size}.{sizes[: i + 1].count(size)}" for i, size in enumerate(sizes)]


def to_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; anything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
