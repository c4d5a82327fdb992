"""Several named losses at every view, as a task works them out: for models that answer with more than logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from anyres.flow import Batch
from anyres.training.objectives.objective import Term, view_names
from anyres.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


class Named:
    """The sum of what ``losses(output, target)`` gives for each view, by name, divided by the number of views.

    ``student`` is called with a view, and its output handed to ``losses``; where there are none, it is called with the
    view and its target, and answers with losses: so a detector, whose heads see what the target chooses. ``model`` is
    what is trained.
    """

    name = "named"

    def __init__(
        self, model: nn.Module, student: nn.Module, losses: Callable[[Any, Any], Mapping[str, Tensor]] | None = None
    ) -> None:
        self.trained: nn.Module = model
        self.student: nn.Module = student
        self.copies: Mapping[str, nn.Module] = {}
        self.published: nn.Module | None = None
        self.wholes: Sequence[nn.Module] = ()
        self._losses = losses

    def begin(self, plan: Plan, step: int) -> None:
        """Nothing changes with the step."""

    def terms(self, student: Callable[..., Any], batch: Batch) -> Iterator[Term]:
        """A term for each loss of each view, largest view first."""
        for i, size in enumerate(view_names(batch)):
            view, target = batch.views[i], batch.targets.of(i)
            found = student(view, target) if self._losses is None else self._losses(student(view), target)
            for name, loss in found.items():
                shown = {f"{name}/{size}": loss.detach()}
                yield Term(f"{name}/{size}", loss / len(batch.views), shown)

    def hold(self, plan: Plan, step: int) -> None:
        """Every parameter moves."""

    def follow(self, plan: Plan, step: int, accelerator: Accelerator) -> None:
        """Nothing follows the model."""
