"""What is minimized: one file for each objective; ``objective.py`` says what an objective is."""

from anyres.training.objective_config import DinoConfig, DistillationConfig, ObjectiveConfig
from anyres.training.objectives.objective import Objective, Student, StudentOutput, Teacher, Term
from anyres.training.objectives.registry import (
    ObjectiveParts,
    check_objective,
    register_objective,
    register_objective_class,
    registered_objective,
)

__all__ = [
    "DinoConfig",
    "DistillationConfig",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveParts",
    "Student",
    "StudentOutput",
    "Teacher",
    "Term",
    "check_objective",
    "register_objective",
    "register_objective_class",
    "registered_objective",
]
