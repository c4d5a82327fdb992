"""Objectives by name: ours, and those that other packages register."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from anyres.config import UserError, nearest
from anyres.flow import Batch
from anyres.training.objective_config import ObjectiveConfig
from anyres.training.objectives.objective import Backbone, Objective, Student, StudentOutput, TaskLoss, Teacher, Term
from anyres.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

BUILT_IN = ("supervised", "cosub", "dino")


@dataclass(frozen=True)
class ObjectiveParts:
    """What an objective is built from: the ``model``; its ``config``; the task's ``loss``; a ``teacher``, where the
    recipe names one; whether the model has a second head for it (``two_heads``)."""

    model: nn.Module
    config: ObjectiveConfig
    loss: TaskLoss
    teacher: Teacher | None = None
    two_heads: bool = False


Terms = Callable[[Callable[[Tensor], StudentOutput], Batch, ObjectiveParts], Iterator[Term]]
"""``terms(student, batch, parts)``: see ``Objective.terms``; the recipe's options are ``parts.config.options``."""


class Registered(NamedTuple):
    """An objective of someone's: what ``build``s it, and the name of that ``origin`` in Python."""

    build: Callable[[ObjectiveParts], Objective]
    origin: str


_REGISTERED: dict[str, Registered] = {}


def register_objective(name: str) -> Callable[[Terms], Terms]:
    """Decorator: makes a generator function ``terms(student, batch, parts)`` the objective ``objective.name=NAME``.

    ``student(view)`` returns logits, logits for a teacher, and the feature of ``objective.target``. The function yields
    any number of ``Term`` per view. Raises UserError for a name that is taken.
    """

    def register(terms: Terms) -> Terms:
        _register(name, lambda parts: FromTerms(name, terms, parts), terms)
        return terms

    return register


def register_objective_class(name: str, build: Callable[[ObjectiveParts], Objective]) -> None:
    """The same for an objective with state of its own: ``build(parts)`` makes it. Raises UserError likewise."""
    _register(name, build, build)


def _register(name: str, build: Callable[[ObjectiveParts], Objective], given: Callable[..., Any]) -> None:
    origin = f"{given.__module__}.{given.__qualname__}"
    if name in (*BUILT_IN, "auto"):
        raise UserError(f"objective {name!r} comes with anyres: choose another name")
    if name in _REGISTERED and _REGISTERED[name].origin != origin:  # the same one may be defined anew
        raise UserError(f"objective {name!r} is there already, from {_REGISTERED[name].origin}: choose another name")
    _REGISTERED[name] = Registered(build, origin)


def registered_objective(name: str) -> Callable[[ObjectiveParts], Objective]:
    """What builds the objective of that name. Raises UserError that names the nearest."""
    if name not in _REGISTERED:
        for point in entry_points(group="anyres.objectives"):
            if point.name == name:
                point.load()
    if name not in _REGISTERED:
        known = [*BUILT_IN, *_REGISTERED]
        raise UserError(
            f"objective.name={name} is not registered{nearest(name, known)} (known: {', '.join(known)}; see "
            "anyres.register_objective)"
        )
    return _REGISTERED[name].build


def check_objective(name: str) -> None:
    """Raises UserError unless an objective of that name comes with anyres or is registered."""
    if name not in BUILT_IN:
        registered_objective(name)


class FromTerms:
    """An objective that is one generator function."""

    def __init__(self, name: str, terms: Terms, parts: ObjectiveParts) -> None:
        assert isinstance(parts.model, Backbone)
        self.name = name
        self.trained: nn.Module = parts.model
        self.student: nn.Module = Student(parts.model, parts.config.target, two_heads=parts.two_heads)
        self.copies: Mapping[str, nn.Module] = {}
        self.published: nn.Module | None = None
        self.wholes: Sequence[nn.Module] = ()
        self._terms, self._parts = terms, parts

    def begin(self, plan: Plan, step: int) -> None:
        """Nothing changes with the step."""

    def terms(self, student: Callable[[Tensor], Any], batch: Batch) -> Iterator[Term]:
        """Those of the function."""
        return self._terms(student, batch, self._parts)

    def hold(self, plan: Plan, step: int) -> None:
        """Every parameter moves."""

    def follow(self, plan: Plan, step: int, accelerator: Accelerator) -> None:
        """Nothing follows the model."""
