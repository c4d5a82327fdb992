"""Read this first: how a source of images becomes a trained model with a report.

    recipe -> images -> views -> objective and loop -> checkpoints -> weights -> a point for every size -> report

Every other module does one part of this; here they are only joined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anyres.config import Stopped, UserError
from anyres.data.cache import DecodedImages
from anyres.data.loader import steps_per_epoch, train_batches
from anyres.data.mix import erase, mix, mix_rng, normalise
from anyres.evaluation.metrics import score
from anyres.evaluation.multilabel import LabelScores, score_labels
from anyres.evaluation.probe import NEIGHBOURS, Neighbours, Pooled, pool
from anyres.flow import Batch, Size, seen_views
from anyres.models.contract import Backbone
from anyres.models.dino import ProjectionHead
from anyres.models.trainable import freeze
from anyres.ops.kernels import check_triton, use_triton
from anyres.ops.residual import skip_dropped
from anyres.recipe import Recipe, differences, dump_recipe, read_recipe
from anyres.runs.opened import (
    RECIPE,
    WEIGHTS,
    build_model,
    check_apart,
    crop_ratio,
    open_images,
    open_run,
    scored_batches,
    start_from,
)
from anyres.runs.report import messages, publish, report_on, said_of
from anyres.runs.teacher import Teacher, build_teacher, has_two_heads
from anyres.training import checkpoint
from anyres.training.log import check_trackers
from anyres.training.loop import Callbacks, train
from anyres.training.objectives.dino import MomentumTeacher, Projected
from anyres.training.objectives.objective import Student, window
from anyres.training.optim import build_optimizer
from anyres.training.parallel import autocast_dtype, build_accelerator, synchronise_batch_norm
from anyres.training.plan import Plan
from anyres.training.state import State, build_ema
from anyres.training.step import NonFiniteLoss


def train_run(recipe: Recipe, run: Path, *, report: bool = True) -> None:
    """Train ``recipe`` in the folder ``run``: from the start, from its newest checkpoint, or not at all if it is done.

    The folder ends with ``model.safetensors``, ``recipe.yaml``, ``metrics.jsonl``, ``run.json``, ``curve.csv``,
    ``curve.png`` and ``report.html`` (these three only with ``report``). Raises UserError when it holds another
    recipe's run and for every fault of data or recipe; Stopped after Ctrl-C or SIGTERM.
    """
    accelerator = build_accelerator(recipe.train.precision)
    console = messages(quiet=not accelerator.is_main_process)
    check_folder(recipe, run)
    check_trackers(recipe.train.trackers)
    check_kernels(recipe, accelerator.device)
    if (run / WEIGHTS).exists():
        console.print(f"{run} is done: it holds {WEIGHTS}. Choose another --out to train again.")
        scored = open_run(run).facts.get("scored", True)
        if report and scored and not (run / "report.html").exists() and accelerator.is_main_process:
            report_on(open_run(run), open_images(recipe, recipe.data.eval_split))
        return
    dino = recipe.objective.dino is not None
    images = open_images(recipe, recipe.data.train_split, training=True, unlabelled=dino)
    held_out = open_images(recipe, recipe.data.eval_split) if images.source.classes else images  # nothing to score
    for those in (images, held_out):
        those.check(recipe.data.max_unreadable)
    if can_score(recipe, images) and dino:
        check_apart(images, held_out)
    recipe = settled(recipe, images)
    check_folder(recipe, run)
    model = build_model(recipe, 0 if recipe.objective.dino is not None else len(images.source.classes))
    if recipe.weights and not checkpoint.found(run):
        console.print(start_from(model, recipe.weights))
    freeze(model, recipe.train.trainable)
    teacher = build_teacher(recipe, images.source.classes, accelerator.device)
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        partial = run / f"{RECIPE}.partial"  # so that whoever kills this run leaves a whole one
        partial.write_text(dump_recipe(recipe))
        partial.replace(run / RECIPE)
    accelerator.wait_for_everyone()
    state = fit(recipe, model, images, held_out, run, accelerator, teacher)
    if accelerator.is_main_process:  # nobody waits for the report: on large sets it takes longer than they would
        publish(recipe, run, state, images, held_out)
        if report and can_score(recipe, images):
            report_on(open_run(run), held_out)
        elif report:
            console.print(f"no curve: `anyres probe {run} --data IMAGES` measures it on images with one label each")


def settled(recipe: Recipe, images: DecodedImages) -> Recipe:
    """The recipe with the loss that suits the images' labels. Raises UserError for what does not suit them."""
    return replace(recipe, objective=recipe.objective.settle(images.source.multi_label))


def can_score(recipe: Recipe, images: DecodedImages) -> bool:
    """Whether held-out images can be scored: nearest neighbours want one label for each image."""
    source = images.source
    return recipe.objective.dino is None or (bool(source.classes) and not source.multi_label)


def fit(
    recipe: Recipe,
    model: Backbone,
    images: DecodedImages,
    held_out: DecodedImages,
    run: Path,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
) -> State:
    """Train ``model`` as ``recipe`` says, from the newest checkpoint in ``run`` if there is one; the final state.

    ``model`` may be any module with timm's contract, frozen where it is not to be trained; ``teacher`` is what
    ``build_teacher`` made. Raises as ``train_run`` does.
    """
    recipe = settled(recipe, images)
    plan = make_plan(recipe, len(images))
    place(recipe, model, accelerator)
    student, momentum = build_student(recipe, model, teacher)
    trained = student if isinstance(student, Projected) else model
    optimizer = build_optimizer(trained, recipe.optim, trained.no_weight_decay())
    state = State(trained, build_ema(trained, recipe.train.ema_decay), optimizer, teacher=momentum)
    if recipe.train.shard and accelerator.num_processes > 1:
        state.shard(student, accelerator.device)
        state.optimizer = build_optimizer(trained, recipe.optim, trained.no_weight_decay())
    console = messages(quiet=not accelerator.is_main_process)
    said = checkpoint.restore(run, state)
    check_same_images(state, len(images), run)
    for sentence in (*said, *describe(recipe, images, held_out, plan, state, accelerator)):
        console.print(sentence)
    if teacher is not None:
        console.print(teacher.told())
    if recipe.train.compile:
        student.compile()
    prepared = accelerator.prepare_model(
        student, evaluation_mode=state.replica is not None
    )  # split: not copied as well
    bank = None if momentum is None else images
    state.optimizer = accelerator.prepare(state.optimizer)

    def evaluate(scored: nn.Module) -> dict[str, float]:
        return score_views(recipe, scored, held_out, accelerator, bank) if can_score(recipe, images) else {}

    def names(index: Tensor) -> str:
        return ", ".join(images.source.records[i].name for i in index.tolist()[:8])

    batches = feed(recipe, images, plan, state.progress.step, accelerator)
    try:
        callbacks = Callbacks(evaluate, teacher, names, asdict(recipe))
        ended = train(accelerator, prepared, state, batches, plan, run, callbacks, run.name)
    except NonFiniteLoss as error:
        raise UserError(
            f"{error}, in the batch {names(error.index)}; {run} keeps the last good state: lower optim.lr"
        ) from None
    except torch.OutOfMemoryError:
        sizes = ", ".join(map(str, recipe.views.sizes))
        raise UserError(
            f"the device's memory is too small for {plan.batch_size} images at {sizes} px: "
            "raise train.accumulate, set train.grad_checkpointing=true, lower views.sizes, or choose a smaller model"
        ) from None
    if ended == "stopped":
        raise Stopped(
            f"stopped after step {state.progress.step} of {plan.steps}: the same command continues from there"
        )
    return state


def place(recipe: Recipe, model: Backbone, accelerator: Accelerator) -> None:
    """Put ``model`` on the device, in the memory layout and with the recomputation that the recipe asks for."""
    synchronise_batch_norm(model.to(accelerator.device))
    if recipe.train.channels_last:
        model.to(memory_format=torch.channels_last)
    if recipe.train.grad_checkpointing:
        model.set_grad_checkpointing()
    if recipe.train.skip_dropped and accelerator.device.type == "cpu" and not recipe.train.compile:
        skip_dropped(model)
    if recipe.train.kernels == "triton" and not use_triton(model):
        name = recipe.model["name"]
        raise UserError(f"train.kernels=triton: no part of {name} has a kernel; set train.kernels=plain")


def build_student(
    recipe: Recipe, model: Backbone, teacher: Teacher | None
) -> tuple[Student | Projected, MomentumTeacher | None]:
    """What is called with each view: the model as the objective sees it, or for DINO with a head and its teacher."""
    how = recipe.objective.dino
    if how is None:
        return Student(model, recipe.objective.target, two_heads=teacher is not None and has_two_heads(model)), None
    torch.manual_seed(recipe.train.seed)
    head = ProjectionHead(
        model.num_features, how.out_dim, how.hidden, how.bottleneck, norm_last_layer=how.norm_last_layer
    )
    student = Projected(model, head.to(next(model.parameters()).device))
    return student, MomentumTeacher(student, how, autocast_dtype(recipe.train.precision))


def check_kernels(recipe: Recipe, device: torch.device) -> None:
    """Raises UserError where the recipe asks for kernels that do not run on ``device``."""
    try:
        if recipe.train.kernels == "triton":
            check_triton(device)
    except UserError as error:
        raise UserError(f"train.kernels=triton: {error}; set train.kernels=plain") from None


def check_folder(recipe: Recipe, run: Path) -> None:
    """Raises UserError unless ``run`` is free or holds this very recipe's run."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: choose another --out")
    if (run / RECIPE).is_file():
        before = read_recipe(run / RECIPE)
        if recipe.objective.loss == "auto":  # it was settled then
            recipe = replace(recipe, objective=replace(recipe.objective, loss=before.objective.loss))
        changed = differences(before, recipe)
        if changed:
            raise UserError(f"{run} holds a run of another recipe ({'; '.join(changed[:3])}): choose another --out")
    elif run.is_dir() and any(path.name != f"{RECIPE}.partial" for path in run.iterdir()):
        raise UserError(f"{run} is not empty and has no {RECIPE}: choose another --out")


def check_same_images(state: State, count: int, run: Path) -> None:
    """Raises UserError when a run would continue with another number of training images; notes it for the next time."""
    before = state.progress.training_images
    if before not in (0, count):
        raise UserError(f"{run} was begun with {before} training images, now there are {count}: choose another --out")
    state.progress.training_images = count


def make_plan(recipe: Recipe, images: int) -> Plan:
    """What the recipe comes to for so many training images."""
    per_epoch = steps_per_epoch(images, recipe.data.batch_size)
    steps = recipe.train.epochs * per_epoch
    return Plan(steps, per_epoch, recipe.data.batch_size, recipe.train, recipe.optim, recipe.objective)


def describe(
    recipe: Recipe, images: DecodedImages, held_out: DecodedImages, plan: Plan, state: State, accelerator: Accelerator
) -> Iterator[str]:
    """What is about to happen, worked out, one sentence at a time."""
    yield from dict.fromkeys((*images.source.notes, *held_out.source.notes))
    yield from (*said_of(images, "training"), *said_of(held_out, "held-out"))
    classes = len(images.source.classes)
    if classes:
        yield f"{len(images)} training and {len(held_out)} held-out images of {classes} classes"
    else:
        yield f"{len(images)} training images without labels"
    if images.source.multi_label and recipe.objective.dino is None:
        yield (
            f"images have several labels: every class is decided by itself (objective.loss={recipe.objective.loss}) "
            "and mAP is scored"
        )
    parameters = sum(p.numel() for p in state.model.parameters())
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    dtype = autocast_dtype(recipe.train.precision)
    yield (
        f"{recipe.model['name']}, {parameters / 1e6:.2f} M parameters, "
        f"{'' if trained == parameters else f'{trained / 1e6:.2f} M of them trained, '}views {recipe.views.told}, "
        f"on {accelerator.num_processes} x {accelerator.device.type} in {str(dtype or torch.float32).split('.')[1]}"
        f"{', split over them' if state.replica is not None else ''}"
    )
    yield (
        f"{plan.train.epochs} epochs of {plan.steps_per_epoch} steps of {plan.batch_size} images, "
        f"peak learning rate {recipe.optim.peak_lr(plan.batch_size):.3g}"
    )
    if not can_score(recipe, images):
        why = "images have several labels" if classes else "there are none"
        yield f"without labels, and nothing to score by, as {why}: the newest checkpoints are kept, not the best"
    elif recipe.objective.dino is not None:
        yield f"without labels; scored by the {NEIGHBOURS} nearest of the training images, by the teacher's features"
    if recipe.data.repeats > 1:
        seen = min(len(images), -(-plan.steps_per_epoch * plan.batch_size // recipe.data.repeats))
        yield f"each image comes {recipe.data.repeats} times in a row with other draws: an epoch sees {seen} images"
    if state.progress.step:
        yield f"continuing from step {state.progress.step} of {plan.steps}"


def feed(recipe: Recipe, images: DecodedImages, plan: Plan, start: int, accelerator: Accelerator) -> Iterator[Batch]:
    """Training batches from step ``start`` on: loaded, normalised on the device, erased, mixed."""
    seed, rank, classes = recipe.train.seed, accelerator.process_index, len(images.source.classes)
    per_step = recipe.objective.views_per_step
    loaded = train_batches(
        images,
        images.source.targets,
        recipe.augment,
        recipe.views,
        batch_size=recipe.data.batch_size,
        seed=seed,
        start_step=start,
        stop_step=plan.steps,
        repeats=recipe.data.repeats,
        rank=rank,
        world=accelerator.num_processes,
        workers=recipe.data.workers,
        max_unreadable=recipe.data.max_unreadable,
        seen=partial(seen_views, views=len(recipe.views.sizes), per_step=per_step) if per_step else None,
        reuse=True,
    )
    for step, raw in enumerate(loaded, start):
        batch = normalise(raw, recipe.data.mean, recipe.data.std, accelerator.device)
        batch = erase(batch, recipe.augment.erasing, seed, step // plan.steps_per_epoch)
        if recipe.mix.on:
            views, target = mix(batch.views, batch.target, classes, recipe.mix, mix_rng(seed, step, rank))
            batch = replace(batch, views=views, target=target)
        yield window(batch, step, per_step)


def score_views(
    recipe: Recipe,
    model: nn.Module,
    images: DecodedImages,
    accelerator: Accelerator,
    bank: DecodedImages | None = None,
) -> dict[str, float]:
    """Top-1 of ``model`` on ``images`` at each training size, as shares, after their mean as ``top1``; mAP as ``map``
    where images have several labels.

    With a ``bank`` of labelled images the model is a backbone, and the nearest of them by its features decide.
    """
    device, dtype, crop = accelerator.device, autocast_dtype(recipe.train.precision), crop_ratio(recipe)

    def gather(local: Tensor) -> Tensor:
        whole = local.long() if local.dtype == torch.bool else local  # padding with -1 would change a bool's type
        padded: Tensor = accelerator.gather(accelerator.pad_across_processes(whole, pad_index=-1))
        return padded.to(local.dtype)

    def batches(shown: DecodedImages, size: Size) -> Iterator[Batch]:
        rank, world = accelerator.process_index, accelerator.num_processes
        return scored_batches(recipe, shown, size, crop, device, rank, world)

    metric = "map" if images.source.multi_label else "top1"
    shares: dict[str, float] = {}
    for size in dict.fromkeys(recipe.views.parsed):
        answering = model
        if bank is not None:
            assert isinstance(model, Backbone)
            mine = pool(model, batches(bank, size), len(bank), device, dtype)
            vectors, target = gather(mine.vectors.to(device)), gather(mine.target.to(device))
            known = target >= 0  # the rest fills up
            answering = Neighbours(model, Pooled(vectors[known], target[known]), len(bank.source.classes), device)
        judge = score_labels if images.source.multi_label else score
        scores = judge(answering, batches(images, size), device, dtype, gather)
        shares[f"{metric}/{size}"] = scores.mean_ap if isinstance(scores, LabelScores) else scores.top1
    return {metric: sum(shares.values()) / len(shares), **shares}
