"""Whether a run may go on in its folder: the same recipe, the same images; and what to do where it ended badly."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from anyres.config import UserError
from anyres.data.annotations.builtin_sets import DRAWN
from anyres.data.cache import DecodedImages
from anyres.data.pace import PACE
from anyres.data.sources import BUILTIN
from anyres.evaluation.scores_file import SCORES
from anyres.recipe import Recipe, differences, read_recipe
from anyres.runs.inputs import with_channels
from anyres.runs.kept import LAST, kept_in
from anyres.runs.opened import FACTS, RECIPE, WEIGHTS, read_facts
from anyres.training import checkpoint
from anyres.training.lock import LOCK
from anyres.training.plan import Plan
from anyres.training.state import Progress

FREE = frozenset(
    (
        *(f"data.{key}" for key in ("source", "workers", "cache_gib", "max_unreadable", "max_faulty")),
        *(
            f"train.{key}"
            for key in ("log_every", "checkpoint_every", "trackers", "threads", "keep", "patience", "max_minutes")
        ),
    )
)
"""Keys that decide no result, or, as the images' path, are compared by what is there."""


RESULTS = (LAST, FACTS, "curve.csv", SCORES, "curve.png", "report.html")
"""What a finished run has beside its weights."""


def check_folder(recipe: Recipe, run: Path) -> None:
    """Raises UserError unless ``run`` is free or holds this very recipe's run."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: choose another --out")
    if (run / RECIPE).is_file():
        before = read_recipe(run / RECIPE)
        if recipe.objective.loss == "auto":  # it was settled then
            recipe = replace(recipe, objective=replace(recipe.objective, loss=before.objective.loss))
        if "auto" in (recipe.task, before.task):  # settled then, or written by an earlier version
            recipe = replace(recipe, task=before.task)
        before = with_channels(before, before.data.channels or 3)  # earlier versions read three
        if recipe.data.channels is None:
            recipe = with_channels(recipe, before.data.channels or 3)
        free = FREE | ({"train.epochs"} if recipe.train.epochs > before.train.epochs else set())
        changed = [text for text in differences(before, recipe) if text.partition(":")[0] not in free]
        begun = (run / WEIGHTS).exists() or bool(checkpoint.found(run))
        if begun and not may_be_same(run, before.data.source, recipe.data.source):
            changed += [f"data.source: {before.data.source} -> {recipe.data.source}"]
        if changed and begun:
            raise UserError(f"{run} holds a run of another recipe ({'; '.join(changed[:3])}): choose another --out")
        if begun:
            check_longer(before, recipe, run)
    elif run.is_dir() and any(not path.name.endswith((".partial", LOCK)) for path in run.iterdir()):
        raise UserError(f"{run} is not empty and has no {RECIPE}: choose another --out")


def may_be_same(run: Path, before: str | None, now: str | None) -> bool:
    """Whether two names of images may mean the same ones: one path in two spellings, or another path where the run
    knows what its images were and is still to compare them."""
    if before is None or now is None or before == now:
        return before == now
    if Path(before).expanduser().resolve() == Path(now).expanduser().resolve():
        return True
    plain = all(":" not in name and name not in (*BUILTIN, *DRAWN, *PACE) for name in (before, now))
    return plain and not (run / WEIGHTS).exists() and checkpoint.knows_data(run)


def check_longer(before: Recipe, recipe: Recipe, run: Path) -> None:
    """Raises UserError where a run would be prolonged though its steps so far depended on its length."""
    if recipe.train.epochs <= before.train.epochs:
        return
    epochs, reason = before.train.epochs, ""
    if before.optim.schedule != "constant":
        reason = f"optim.schedule={before.optim.schedule} spreads the learning rate over its {epochs} epochs"
    elif before.optim.weight_decay_end is not None:
        reason = f"optim.weight_decay_end spreads the weight decay over its {epochs} epochs"
    elif before.objective.dino is not None:
        reason = f"objective.dino spreads its teacher's momentum over its {epochs} epochs"
    elif before.optim.warmup_epochs > epochs:
        reason = f"optim.warmup_epochs={before.optim.warmup_epochs:g} was cut short by its {epochs} epochs"
    if reason:
        raise UserError(
            f"{run} cannot be prolonged to train.epochs={recipe.train.epochs}: {reason}. Start from its weights with "
            f"--weights {run} and another --out; a run with optim.schedule=constant can be prolonged"
        )


def reopens(recipe: Recipe, run: Path) -> bool:
    """Whether a finished run goes on: to more epochs, past the limit that ended it, or to keep other weights."""
    train, then, facts = recipe.train, read_recipe(run / RECIPE).train, read_facts(run / FACTS)
    if "kept" in facts and train.keep != then.keep:
        return True
    if facts.get("ended") == "time":
        return train.max_minutes is None or train.max_minutes > (then.max_minutes or 0)
    if facts.get("ended") == "patience":
        return train.patience is None or train.patience > (then.patience or 0)
    return train.epochs > then.epochs


def ended_early(recipe: Recipe, run: Path) -> str:
    """What ended a finished run before its last epoch, and how it can go on; "" where it made all its epochs."""
    facts = read_facts(run / FACTS)
    key = {"time": "max_minutes", "patience": "patience"}.get(facts.get("ended", ""))
    kept = kept_in(facts)
    if key is None or kept is None:
        return ""
    return (
        f"It ended after epoch {kept.last_epoch:g} of {recipe.train.epochs}, by train.{key}: the same command with a "
        f"larger train.{key} goes on from there."
    )


def reopen(run: Path, images: tuple[DecodedImages, DecodedImages], plan: Plan) -> None:
    """Make a finished run one that is still to be finished: its weights and results go, its checkpoints stay.

    Raises UserError, with all left as it was, where it cannot go on.
    """
    progress = checkpoint.newest_progress(run)
    if progress is None:
        raise UserError(f"{run} has no checkpoint to go on from: give --weights {run} and another --out")
    check_progress(progress, images, plan, run)
    for name in (WEIGHTS, *RESULTS):
        (run / name).unlink(missing_ok=True)


def check_progress(progress: Progress, images: tuple[DecodedImages, DecodedImages], plan: Plan, run: Path) -> None:
    """Raises UserError where a run would continue with other images or another plan; notes both for the next time."""
    now, then = describe_data(images), progress.data
    count = len(images[0])
    if progress.training_images not in (0, count):
        raise UserError(
            f"{run} was begun with {progress.training_images} training images, now there are {count}: "
            "choose another --out"
        )
    if then and then.get("classes") != now["classes"]:
        raise UserError(
            f"{run} was begun with the classes {then.get('called')}, now they are {now['called']}: choose another --out"
        )
    for part, called in (("training", "training"), ("held_out", "held-out")):
        if then and then.get(part) != now[part]:
            raise UserError(
                f"the {called} images are not those {run} was begun with, though they are as many: some have another "
                "name or another label; choose another --out"
            )
    if progress.step > plan.steps:
        raise UserError(f"{run} is at step {progress.step}, and its recipe makes {plan.steps}: choose another --out")
    progress.training_images, progress.data = count, now


def describe_data(images: tuple[DecodedImages, DecodedImages]) -> dict[str, str]:
    """What decides a run about its images, as short texts: digests, and the first classes by name."""
    training, held_out = (opened.source for opened in images)
    classes = training.classes
    called = ", ".join(name[:40] for name in classes[:8]) + (f", ... ({len(classes)})" if len(classes) > 8 else "")
    return {
        "classes": hashlib.sha256(json.dumps(classes).encode()).hexdigest(),
        "called": called or "none",
        "training": training.fingerprint(),
        "held_out": held_out.fingerprint() if held_out is not training else "",
    }


def way_on(run: Path) -> str:
    """What to do where weights or a loss were not finite."""
    kept = checkpoint.found(run)
    if not kept:
        return f"lower optim.lr; nothing was saved in {run}, so the same --out will do"
    return (
        f"{kept[0]} is the last good state; to go on from it with a lower optim.lr, "
        f"give --weights {kept[0]} and another --out"
    )


def mendable(error: ValueError) -> str:
    """What to do about an error of PyTorch's that its user can mend; empty for any other."""
    if "more than 1 value per channel" in str(error):
        return (
            "batch norm needs two values of each channel, and a batch's last layer has one: raise data.batch_size or "
            "views.sizes, or lower train.accumulate"
        )
    return ""
