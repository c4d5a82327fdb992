"""Which step's weights a run leaves: those of the best one scored on held-out images, or of the last."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor, nn

from anyres.data.loader import steps_per_epoch
from anyres.flow import Metric
from anyres.recipe import Recipe
from anyres.storage import check_types
from anyres.training import checkpoint
from anyres.training.state import State

LAST = "last.safetensors"
"""The last step's weights, where ``model.safetensors`` holds another's."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What ``run.json`` says of the weights in ``model.safetensors``, under ``kept``.

    ``rule``: ``best`` or ``last``, which step was to be kept; ``step`` is theirs, ``last`` the run's last, each
    in an ``epoch`` of so many; ``scores``: theirs, by version of the weights and by metric; ``scored``: so many
    scorings there were; ``chosen_by``: the digest of the images that chose it ("": none did).
    """

    rule: str
    step: int
    last: int
    epoch: float
    last_epoch: float
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    scored: int = 0
    chosen_by: str = ""

    def sentence(self, metric: Metric) -> str:
        """For people, without the name of the file."""
        value = next(iter(self.scores.values()), {}).get(metric.key)
        scored = f" ({metric.name} {metric.text(value)})" if value is not None else ""
        if self.step == self.last:
            also = f", which is the best of {self.scored} scored" if self.rule == "best" and self.scored > 1 else ""
            return f"after epoch {self.last_epoch:g}, the last{also}{scored}"
        return f"after epoch {self.epoch:g} of {self.last_epoch:g}, the best of {self.scored} scored{scored}"


def keeps_best(recipe: Recipe) -> bool:
    """What ``train.keep`` means for the recipe."""
    return recipe.train.keep == "best" or (recipe.train.keep == "auto" and recipe.data.eval_split == "val")


def choose(recipe: Recipe, run: Path, state: State, images: int) -> tuple[Kept, Mapping[str, Tensor] | nn.Module]:
    """Which weights ``model.safetensors`` is to hold, and they themselves; ``images`` are in the training set.

    The best step's are its checkpoint's; where that is damaged, the last are kept, and a sentence says so.
    """
    progress, weights = state.progress, dict[str, Tensor]()
    if keeps_best(recipe) and progress.best_step not in (-1, progress.step):
        try:
            weights = checkpoint.read_weights(run, progress.best_step, state.published_file)
        except (checkpoint.Damaged, OSError) as error:
            log.warning("the best weights, after step %d, are lost (%s): the last are kept", progress.best_step, error)
    step = progress.best_step if weights else progress.step
    per_epoch = steps_per_epoch(images, recipe.data.step_images)
    kept = Kept(
        "best" if keeps_best(recipe) and progress.best_step >= 0 else "last",
        step,
        progress.step,
        round(step / per_epoch, 2),
        round(progress.step / per_epoch, 2),
        progress.best_scores if weights else progress.scores,
        progress.scored,
        progress.data.get("held_out", ""),
    )
    return kept, weights or state.evaluated


def kept_in(facts: Mapping[str, Any]) -> Kept | None:
    """What ``run.json`` says was kept; None in those of earlier versions, which kept the last."""
    known = facts.get("kept")
    if not isinstance(known, dict) or known.keys() != {field.name for field in fields(Kept)}:
        return None
    try:
        check_types(known, get_type_hints(Kept))
    except ValueError:
        return None
    return Kept(**known)
