"""Tasks by name: ours, each imported when it is asked for, and those that other packages register."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar, cast

from anyres.config import UserError, nearest
from anyres.data.sources import Source, Wanted
from anyres.flow import Metric
from anyres.tasks.image import ImageTask
from anyres.tasks.task import Configs, Task
from anyres.training.objectives import ObjectiveConfig

T = TypeVar("T", bound=type)
_OURS = {
    "classify": "Classify",
    "multilabel": "MultiLabel",
    "unlabelled": "Unlabelled",
    "segment": "Segment",
    "detect": "Detect",
    "video": "Video",
}
"""The class in the file of that name. What a task builds on, as torchvision and timm, takes seconds to import."""
_TASKS: dict[str, Any] = {}
"""Those that were asked for or registered."""


def register_task(task: T) -> T:
    """Class decorator: makes a task available as ``task=NAME`` in recipes and on the command line.

    A package does the same for its users with an entry point in the group ``anyres.tasks``. Raises UserError for a name
    that is taken by another class, and for an ImageTask that lacks a method.
    """
    name = cast(type[Task], task).name
    taken = name in _OURS or (name in _TASKS and _TASKS[name].__qualname__ != task.__qualname__)
    if name == "auto" or taken:
        raise UserError(f"task {name!r} is there already: choose another name")
    if inspect.isabstract(task):
        lacking = sorted(cast(ABCMeta, task).__abstractmethods__)
        raise UserError(f"task {name!r} lacks {', '.join(lacking)}: see anyres.ImageTask")
    _TASKS[name] = task
    return task


def task_class(name: str) -> Any:
    """The class of a task. Raises UserError that names the nearest."""
    if name in _OURS and name not in _TASKS:
        _TASKS[name] = getattr(import_module(f"anyres.tasks.{name}"), _OURS[name])
    if name not in _TASKS:
        for point in entry_points(group="anyres.tasks"):
            if point.name == name:
                register_task(point.load())
    if name not in _TASKS:
        raise UserError(
            f"task={name} is not registered{nearest(name, _known())} (known: auto, {', '.join(_known())}; see "
            "anyres.register_task)"
        )
    return _TASKS[name]


def _known() -> tuple[str, ...]:
    return tuple(dict.fromkeys((*_OURS, *_TASKS)))


def known_metrics() -> dict[str, Metric]:
    """What the tasks that are registered here, or by other packages, measure, by key."""
    for name in (*_OURS, *(point.name for point in entry_points(group="anyres.tasks"))):
        task_class(name)
    return {metric.key: metric for task in _TASKS.values() for metric in task.metrics}


def wanted_by(name: str, objective: ObjectiveConfig) -> Wanted:
    """What labels a recipe's task wants of a source, before the source is opened."""
    wanted: Wanted = task_class(_named(name, objective) or "classify").wanted
    return wanted


def task_for(name: str, objective: ObjectiveConfig, source: Source) -> Task:
    """The recipe's task for a source; ``auto`` is decided by the objective and the labels."""
    chosen = _named(name, objective) or ("multilabel" if source.labelling == "several" else "classify")
    task: Task = task_class(chosen)(classes=source.classes).learning_from(source)
    return task


def check(name: str, configs: Configs) -> None:
    """Raises UserError for parts of a recipe that do not go together, as far as that shows without images."""
    if chosen := _named(name, configs.objective):
        task_class(chosen)().settle(configs)


def task_of(about: dict[str, Any], name: str = "auto", objective: ObjectiveConfig = ObjectiveConfig()) -> ImageTask:
    """The task that a file of weights tells of (see ``Task.about``).

    Files of earlier versions name none: then it is what the recipe of their run says, ``name`` and ``objective``.
    """
    older = _named(name, objective) or ("multilabel" if about.get("multi_label") else "classify")
    name = about.get("task") or older
    task: ImageTask = task_class(str(name))(classes=tuple(about.get("classes", ())))
    return task


def _named(name: str, objective: ObjectiveConfig) -> str | None:
    """The task that a recipe means without regard to its images; None: they decide."""
    if name != "auto":
        return name
    return "unlabelled" if objective.chosen == "dino" else None


__all__ = ["ImageTask", "check", "known_metrics", "register_task", "task_class", "task_for", "task_of", "wanted_by"]
