"""What a target is: one file for each task; ``task.py`` says what a task is, ``image.py`` what most have in common."""

from anyres.tasks.image import ImageTask
from anyres.tasks.registry import check, known_metrics, register_task, task_class, task_for, task_of, wanted_by
from anyres.tasks.task import Answer, AnswerOptions, Configs, Output, Parts, Reference, Shown, Task

__all__ = [
    "Answer",
    "AnswerOptions",
    "Configs",
    "ImageTask",
    "Output",
    "Parts",
    "Reference",
    "Shown",
    "Task",
    "check",
    "known_metrics",
    "register_task",
    "task_class",
    "task_for",
    "task_of",
    "wanted_by",
]
