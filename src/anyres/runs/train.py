"""Read this first: how a source of images becomes a trained model with a report.

    recipe -> images -> task -> views -> objective and loop -> checkpoints -> weights -> results by size -> report

Every other module does one part of this; here they are only joined.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anyres.config import Stopped, UserError
from anyres.data.cache import DecodedImages
from anyres.data.loader import Rank
from anyres.evaluation.curve import measure_quality
from anyres.evaluation.evaluator import EvalSettings
from anyres.flow import Batch, Size, on_device
from anyres.models.contract import Network
from anyres.models.trainable import freeze
from anyres.ops.triton_switch import triton_kernels
from anyres.recipe import Recipe, dump_recipe, load_recipe
from anyres.runs.batch_size import Trial, as_begun, with_batch_size
from anyres.runs.bounds import check_recipe
from anyres.runs.first_weights import AUTO, best_weights, from_scratch
from anyres.runs.inputs import (
    check_apart,
    describe_images,
    open_images,
    scored_batches,
    training_batches,
    with_channels,
    with_full_path,
)
from anyres.runs.kept import keeps_best
from anyres.runs.learner import build_learner, check_kernels, make_plan
from anyres.runs.opened import RECIPE, WEIGHTS, TrainedModel, build_model, check_sizes, open_run, start_from
from anyres.runs.report import Evaluation, finish, report_on
from anyres.runs.resume import check_folder, check_progress, ended_early, mendable, reopen, reopens, way_on
from anyres.runs.stderr import show_log
from anyres.runs.teacher import Teacher, build_teacher
from anyres.runs.training_record import VIEWS, showing_first
from anyres.storage import remove_drafts, write_text
from anyres.tasks import Reference, Task, task_for, wanted_by
from anyres.training import checkpoint
from anyres.training.lock import LOCK, RunLock
from anyres.training.log import check_trackers
from anyres.training.loop import Callbacks
from anyres.training.loop import train as run_loop
from anyres.training.objectives import check_objective
from anyres.training.parallel import autocast_dtype, build_accelerator, gather_uneven
from anyres.training.plan import Plan
from anyres.training.state import State
from anyres.training.step import NonFiniteLoss, NonFiniteWeights
from anyres.training.stop import exit_code

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """A finished run: its ``folder``, and the ``evaluation`` at its end (None: nothing was measured)."""

    folder: Path
    evaluation: Evaluation | None

    def load(self) -> TrainedModel:
        """The trained model."""
        return open_run(self.folder)


def train(
    recipe: str | Path | Recipe,
    overrides: str | Sequence[str] = (),
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    weights: str | Path | None = None,
    report: bool = True,
    device: str | None = None,
) -> TrainingRun:
    """Train a model in a run folder: from the start, from its newest checkpoint, or not at all if it is done.

    ``recipe``: the name of a recipe or model, a YAML file, or a Recipe; ``overrides``: its keys, as
    ``["optim.lr=3e-4", "train.epochs=5"]``. ``data``: images in any form that `anyres data` lists, such as a folder
    ``root/class/*.jpg``. ``out``: the run folder (``runs/NAME``). ``weights``: what to start from. ``report``: measure
    the curve at the end. ``device``: ``cpu``, ``cuda:1`` or ``mps`` (None: the best here).

    Returns the finished run and what was measured. Its folder holds ``model.safetensors``, ``recipe.yaml``,
    ``metrics.jsonl``, ``run.json``, and with ``report`` ``curve.csv``, ``curve.png`` and ``report.html``. The same call
    resumes an interrupted run, bit for bit. Raises UserError when the folder holds another recipe's run, and for every
    fault of data or recipe; Stopped after Ctrl-C or SIGTERM, when the step in hand is saved.
    """
    show_log()
    given = {key: str(text) for key, text in (("data.source", data), ("weights", weights)) if text}
    overrides = [overrides] if isinstance(overrides, str) else overrides
    if isinstance(recipe, Recipe):
        if overrides or given:
            raise UserError("overrides go with a recipe's name or file; a Recipe holds every value already")
        made, name = recipe, str(recipe.model["name"])
    else:
        made, name = load_recipe(str(recipe), overrides, given), str(recipe)
        name = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    if made.weights == AUTO:
        made = replace(made, weights=best_weights(str(made.model["name"])))
    run = Path(out) if out is not None else Path("runs") / name.replace("/", "-").replace(":", "-")
    with on_device(device):
        return TrainingRun(run, train_run(made, run, report=report))


def train_run(recipe: Recipe, run: Path, *, report: bool = True) -> Evaluation | None:
    """Train ``recipe`` in the folder ``run``; see ``train``. Returns what was measured, if a report was written."""
    accelerator = build_accelerator(recipe.train.precision)
    if not accelerator.is_main_process:
        logging.getLogger("anyres").setLevel(logging.ERROR)
    with RunLock(run) as lock:
        return train_locked(as_begun(recipe, run), run, accelerator, lock, report)


def train_locked(recipe: Recipe, run: Path, accelerator: Accelerator, lock: RunLock, report: bool) -> Evaluation | None:
    """The same, with the folder's ``lock``: taken at once where a run is in the folder, else when one begins there."""
    check_folder(recipe, run)
    unfinished = not (run / WEIGHTS).exists() or (run / LOCK).exists()
    if accelerator.is_main_process and (run / RECIPE).is_file() and unfinished:
        lock.take()
    check_trackers(recipe.train.trackers)
    check_objective(recipe.objective.chosen)
    check_kernels(recipe, accelerator.device)
    if accelerator.is_main_process and run.is_dir():
        remove_drafts(run, locked=lock.held)
    if (run / WEIGHTS).exists() and not reopens(recipe, run):
        way_on = ended_early(recipe, run) or "Choose another --out to train again."
        log.info("%s is done: it holds %s. %s", run, WEIGHTS, way_on)
        return report_again(recipe, run, report and accelerator.is_main_process)
    check_recipe(recipe)
    check_sizes(recipe)
    wanted = wanted_by(recipe.task, recipe.objective)
    images = open_images(recipe, recipe.data.train_split, wanted=wanted, training=True)
    recipe = with_channels(recipe, images.channels)
    task = task_for(recipe.task, recipe.objective, images.source)
    unlabelled = images.source.labelling == "none"  # nothing to score
    held_out = images if unlabelled else open_images(recipe, recipe.data.eval_split, wanted=wanted)
    check_images(recipe, task, (images, held_out))
    recipe, task = settled(recipe, task)
    check_folder(recipe, run)
    model = build_model(recipe, task, training=True)
    began = begin(model, recipe, task, run)
    freeze(model, recipe.train.trainable, recipe.train.freeze_blocks)
    teacher = build_teacher(recipe, task.classes, accelerator.device)
    recipe = with_batch_size(recipe, Trial(task, model, images, accelerator, teacher))
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        lock.take()
        check_folder(recipe, run)  # another process may have begun, or ended, a run here meanwhile
        checkpoint.remove_drafts(run)
        remove_drafts(run, locked=lock.held)
        if (run / WEIGHTS).exists() and reopens(recipe, run):
            reopen(run, (images, held_out), make_plan(recipe, len(images)))
        write_text(run / RECIPE, dump_recipe(with_full_path(recipe)))
        if began:
            log.info(began)
    accelerator.wait_for_everyone()
    if (run / WEIGHTS).exists():
        return train_locked(recipe, run, accelerator, lock, report)
    state = fit(recipe, task, model, (images, held_out), run, accelerator, teacher)
    if accelerator.is_main_process:  # nobody waits for the report: on large sets it takes longer than they would
        finish(recipe, task, run, state, (images, held_out))
        if note := ended_early(recipe, run):
            log.info(note)
        if report and task.can_score(images.source):
            return report_on(open_run(run), held_out)
        if report:
            log.info("no curve: `anyres probe %s --data IMAGES` measures it on images with one label each", run)
    return None


def check_images(recipe: Recipe, task: Task, images: tuple[DecodedImages, DecodedImages]) -> None:
    """Raises UserError where images to train on or held out cannot be read, labelled or scored as the recipe says."""
    for opened in images:
        for record in opened.source.records:
            task.read(record)  # raises for a label that is none
        opened.check(recipe.data.max_unreadable)
    scored = task.can_score(images[0].source)
    if scored and not task.can_score(images[1].source):
        split = images[1].source.split
        raise UserError(f"there is nothing in the {split} split to score by: label images there, or name another split")
    if task.compares and scored:
        check_apart(*images)
    if recipe.data.balance and images[0].source.labelling != "one":
        raise UserError("data.balance=true wants images of one label each: leave it out")
    if recipe.train.patience is not None and not scored:
        raise UserError("train.patience counts scorings, and these images cannot be scored: leave it out")


def begin(model: Network, recipe: Recipe, task: Task, run: Path) -> str:
    """Load the weights that a run starts from, and say which; "" where it goes on from a checkpoint."""
    if checkpoint.found(run):
        return ""
    return start_from(task.begun(model), recipe.weights, task.classes) if recipe.weights else from_scratch(recipe)


def report_again(recipe: Recipe, run: Path, wanted: bool) -> Evaluation | None:
    """The report of a finished run, where it has none."""
    trained = open_run(run)
    if wanted and trained.facts.get("scored", True) and not (run / "report.html").exists():
        return report_on(trained, open_images(recipe, recipe.data.eval_split, wanted=trained.task.wanted))
    return None


def settled(recipe: Recipe, task: Task) -> tuple[Recipe, Task]:
    """Both with what was left open decided by the images' labels. Raises UserError for what does not suit them."""
    objective = task.settle(recipe.configs)
    return replace(recipe, task=task.name, objective=objective), task.with_loss(objective.loss).with_head(recipe.head)


def fit(
    recipe: Recipe,
    task: Task,
    model: Network,
    images: tuple[DecodedImages, DecodedImages],
    run: Path,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
) -> State:
    """Train ``model`` as ``recipe`` says, from the newest checkpoint in ``run`` if there is one; the final state.

    ``model`` may be any module with timm's contract, frozen where it is not to be trained; ``images``: to train on, and
    held out; ``teacher`` is what ``build_teacher`` made. Raises as ``train`` does.
    """
    training = images[0]
    plan = make_plan(recipe, len(training), accelerator.num_processes)
    objective, state = build_learner(recipe, task, model, accelerator, teacher)
    warnings = checkpoint.restore(run, state)
    check_progress(state.progress, images, plan, run)
    for sentence in (*warnings, *describe(recipe, task, images, plan, state, accelerator)):
        log.info(sentence)
    if teacher is not None:
        log.info(teacher.summary())
    if recipe.train.compile:
        objective.student.compile()
    prepared = accelerator.prepare_model(objective.student, evaluation_mode=state.replica is not None)  # split: no copy
    state.optimizer = accelerator.prepare(state.optimizer)

    def evaluate(scored: nn.Module) -> dict[str, float]:
        return score_views(recipe, task, scored, images, accelerator) if task.can_score(training.source) else {}

    def names(index: Tensor) -> str:
        return ", ".join(training.source.records[i].name for i in index.tolist()[:8])

    batches = training_batches(recipe, task, training, plan, state.progress.step, accelerator)
    if accelerator.is_main_process and not state.progress.step:
        batches = showing_first(batches, recipe, run / VIEWS)
    try:
        callbacks = Callbacks(evaluate, task.metrics[0].higher_is_better, names, asdict(recipe))
        with triton_kernels(recipe.train.kernels == "triton"), contextlib.closing(batches):  # ends its loaders
            stopped_by = run_loop(accelerator, prepared, objective, state, batches, plan, run, callbacks)
    except NonFiniteLoss as error:
        raise UserError(f"{error}, in the batch {names(error.index)}: {way_on(run)}") from None
    except NonFiniteWeights as error:
        raise UserError(f"{error}, so that an update was too large: {way_on(run)}") from None
    except torch.OutOfMemoryError:
        sizes = ", ".join(map(str, recipe.views.sizes))
        raise UserError(
            f"the device's memory is too small for {plan.batch_size} images at {sizes} px: "
            "raise train.accumulate, set train.grad_checkpointing=true, lower views.sizes, or choose a smaller model"
        ) from None
    except ValueError as error:
        if advice := mendable(error):
            raise UserError(advice) from None
        raise
    if stopped_by is not None:
        raise Stopped(
            f"stopped after step {state.progress.step} of {plan.steps}: the same command continues from there",
            exit_code(stopped_by),
        )
    return state


def describe(
    recipe: Recipe,
    task: Task,
    images: tuple[DecodedImages, DecodedImages],
    plan: Plan,
    state: State,
    accelerator: Accelerator,
) -> Iterator[str]:
    """What is about to happen, worked out, one sentence at a time."""
    training, held_out = images
    yield from dict.fromkeys((*training.source.notes, *held_out.source.notes))
    yield from (*describe_images(training, "training"), *describe_images(held_out, "held-out"))
    if training.source.classes:
        classes = len(training.source.classes)
        yield f"{len(training)} training and {len(held_out)} held-out images of {classes} classes"
    elif training.source.labelling == "none":
        yield f"{len(training)} training images without labels"
    else:
        yield f"{len(training)} training and {len(held_out)} held-out images"
    parameters = sum(p.numel() for p in state.model.parameters())
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    dtype = autocast_dtype(recipe.train.precision)
    yield (
        f"{recipe.model['name']}, {parameters / 1e6:.2f} M parameters, "
        f"{'' if trained == parameters else f'{trained / 1e6:.2f} M of them trained, '}views {recipe.views.summary}, "
        f"on {accelerator.num_processes} x {accelerator.device.type} in {str(dtype or torch.float32).split('.')[1]}"
        f"{', split over them' if state.replica is not None else ''}"
    )
    yield (
        f"{plan.train.epochs} epochs of {plan.steps_per_epoch} steps of {plan.batch_size} images, "
        f"peak learning rate {plan.optim.peak_lr(plan.batch_size):.3g}"
    )
    if plan.batch_size < recipe.data.step_images:
        yield (
            f"data.batch_size={recipe.data.batch_size} is more than the {len(training)} training images: a step takes "
            f"{plan.batch_size}, and the learning rate is lowered with it"
        )
    yield from task.describe(training.source)
    if recipe.data.eval_split == "test" and keeps_best(recipe):
        yield (
            "train.keep=best chooses the epoch by the test images, on which the report then measures: its figures will "
            "be too high; data.eval_split=val holds other images out"
        )
    if recipe.data.balance:
        counts = Counter(record.target for record in training.source.records).values()
        often = len(training) / len(counts)
        yield f"balanced: each class comes {often:.3g} times an epoch; they have {min(counts)} to {max(counts)} images"
    if recipe.data.repeats > 1:
        seen = min(len(training), -(-plan.steps_per_epoch * plan.batch_size // recipe.data.repeats))
        yield f"each image comes {recipe.data.repeats} times in a row with other draws: an epoch sees {seen} images"
    if state.progress.step:
        yield f"continuing from step {state.progress.step} of {plan.steps}"


def score_views(
    recipe: Recipe,
    task: Task,
    model: nn.Module,
    images: tuple[DecodedImages, DecodedImages],
    accelerator: Accelerator,
) -> dict[str, float]:
    """The headline metric of ``model`` on the held-out images at each training size, after the mean of them all."""
    training, held_out = images
    rank = Rank(accelerator.process_index, accelerator.num_processes)

    def batches(shown: DecodedImages, size: Size) -> Iterator[Batch]:
        return scored_batches(recipe, task.scoring(), shown, size, accelerator.device, rank)

    how = EvalSettings(accelerator.device, autocast_dtype(recipe.train.precision), partial(gather_uneven, accelerator))
    key = task.metrics[0].key
    values: dict[str, float] = {}
    for size in dict.fromkeys(recipe.views.parsed):
        reference = None
        if task.compares:
            opened = partial(batches, training, size)
            reference = Reference(opened, len(training), len(training.source.classes))
        evaluators = task.evaluators(model, reference)
        quality = measure_quality(model, evaluators, size, partial(batches, held_out, size), how)
        values[f"{key}/{size}"] = quality.metrics[key].value
    return {key: sum(values.values()) / len(values), **values}
