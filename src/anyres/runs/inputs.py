"""Images for a recipe: opened, checked, and served as batches to training and evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from anyres.config import UserError
from anyres.data.annotations.annotated import Rules
from anyres.data.annotations.builtin_sets import DRAWN
from anyres.data.augment import check_channels
from anyres.data.cache import DecodedImages
from anyres.data.channels import channels_of
from anyres.data.clips import Clip, with_clips
from anyres.data.drawn_sources import Drawn, open_scored, open_split
from anyres.data.erasing import erase
from anyres.data.framing import Framing
from anyres.data.loader import LoaderOptions, Rank, Steps, eval_batches, train_batches
from anyres.data.mix import mix_rng, normalize
from anyres.data.normalization import normalization
from anyres.data.pace import PACE
from anyres.data.sources import BUILTIN, Source, Wanted
from anyres.flow import Batch, Size, TargetReader, parse_sizes, seen_views
from anyres.models import variant
from anyres.recipe import Recipe
from anyres.storage import as_path
from anyres.tasks import Task, wanted_by
from anyres.training.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)
_TOLD = 1000  # images that become unreadable while a run lasts, and are named at once


def open_images(
    recipe: Recipe,
    split: str,
    data: str | None = None,
    wanted: Wanted = "classes",
    fit: Callable[[Source], Source] = lambda source: source,
    *,
    training: bool = False,
) -> DecodedImages:
    """One split of the recipe's data (or of ``data``), decoded into memory if the recipe says so and they fit.

    ``wanted``: see ``Task.wanted``. ``fit`` checks the source's targets, or counts them otherwise, before anything is
    decoded. Only images for ``training`` are decoded as ``data.dct`` says: what is scored is read in full. They are
    read with ``data.channels``, or what their files agree on. Raises UserError.
    """
    share, how = recipe.data.val_share, drawn_by(recipe)
    return _decoded(
        recipe, fit(open_split(named(recipe, data), split, val_share=share, wanted=wanted, how=how)), training
    )


def drawn_by(recipe: Recipe) -> Drawn:
    """How annotated pictures are taken."""
    given = recipe.data
    return Drawn(Rules(drop_empty=given.drop_empty, max_faulty=given.max_faulty), given.tile)


def open_test_images(
    recipe: Recipe,
    split: str | None,
    data: str | None = None,
    wanted: Wanted = "classes",
    fit: Callable[[Source], Source] = lambda source: source,
) -> DecodedImages:
    """The same of images that are only scored: see ``open_scored``."""
    usual, share = recipe.data.eval_split, recipe.data.val_share
    data, how = named(recipe, data), drawn_by(recipe)
    opened = open_scored(data, split, usual=usual, val_share=share, wanted=wanted, how=how)
    return _decoded(recipe, fit(opened))


def named(recipe: Recipe, data: str | None) -> str:
    """What says where the images are: ``data``, or else the recipe. Raises UserError where nothing does."""
    source = data or recipe.data.source
    if source is None:
        raise UserError("no images: give --data a folder, a CSV manifest or a built-in set such as groceries")
    return source


def is_same_data(one: str, other: str | None) -> bool:
    """Whether two words for images name the same ones, as ``photos``, ``photos/`` and a link to it do."""
    return other is not None and (one == other or os.path.realpath(one) == os.path.realpath(other))


def with_full_path(recipe: Recipe) -> Recipe:
    """The recipe with the path of its images in full, by which its run finds them from every folder."""
    source = recipe.data.source
    if source is None or ":" in source or source in (*BUILTIN, *DRAWN, *PACE):
        return recipe
    return replace(recipe, data=replace(recipe.data, source=str(as_path(source).absolute())))


def _decoded(recipe: Recipe, opened: Source, training: bool = False) -> DecodedImages:
    budget = recipe.data.cache_gib if recipe.data.cache_side else 0.0
    if frames_of(recipe) is not None:
        return _decoded_clips(recipe, opened, budget, training)
    largest = max(max(size) for size in recipe.views.parsed)
    dct_side = largest if training and recipe.data.dct else None
    channels, note = channels_of(opened.records, recipe.data.channels)
    if training:
        for _, augment in recipe.views.plan(recipe.augment):
            check_channels(augment, channels)
    opened = replace(opened, notes=(*opened.notes, *([note] if note else [])))
    return DecodedImages(
        opened,
        recipe.data.cache_side,
        budget,
        dct_side=dct_side,
        channels=channels,
        view_side=largest if training else None,
    )


def _decoded_clips(recipe: Recipe, opened: Source, budget: float, training: bool) -> DecodedImages:
    """The same for films: a clip's frames are its channels."""
    if not all(isinstance(record.source, Clip) for record in opened.records):
        raise UserError(f"{opened.name} holds images, and task={recipe.task} is of films: give it films")
    channels, augment = RGB * recipe.clip.frames, recipe.augment
    if recipe.data.channels not in (None, channels):
        raise UserError(f"data.channels={recipe.data.channels}: the channels of clips are their frames: leave it out")
    if training and (augment.jitters or augment.grayscale or augment.rand_augment or augment.three_augment):
        raise UserError(
            "clips are cut, mirrored, blurred, solarized and erased alone: set augment's brightness, contrast, "
            "saturation, hue and grayscale to 0, rand_augment to null and three_augment to false"
        )
    records = with_clips(opened.records, recipe.clip)
    drawn = training and any(isinstance(each.source, Clip) and not each.source.pace for each in records)
    # where every sample is another clip of its film, there is nothing to keep
    return DecodedImages(
        replace(opened, records=records), recipe.data.cache_side, 0.0 if drawn else budget, channels=channels
    )


RGB = 3
"""Channels of a film's frame."""


def frames_of(recipe: Recipe) -> int | None:
    """The frames of what the recipe's task is shown; None where that is images."""
    return recipe.clip.frames if wanted_by(recipe.task, recipe.objective) == "clips" else None


def with_channels(recipe: Recipe, channels: int) -> Recipe:
    """The recipe with ``data.channels``, and a mean and deviation for each of them. Raises UserError."""
    mean, std = recipe.data.mean, recipe.data.std
    frames = frames_of(recipe)
    if frames is None:
        mean, std = normalization(mean, std, channels)
    elif len(mean) != channels or len(std) != channels:  # of a frame
        mean, std = (values * frames for values in normalization(mean, std, channels // frames))
    return replace(recipe, data=replace(recipe.data, channels=channels, mean=mean, std=std))


def reference_images(recipe: Recipe, images: DecodedImages) -> DecodedImages:
    """The training images that go with held-out ``images``, to compare with. Raises UserError if some are both."""
    split = images.source.split
    if split.startswith("train"):
        raise UserError(f"--split {split} is what the probe learns from: give val or test")
    train = open_images(recipe, recipe.data.train_split if split == "test" else "train", images.source.name)
    check_apart(train, images)
    return train


def check_apart(train: DecodedImages, test: DecodedImages) -> None:
    """Raises UserError if images are in both, so that they would find themselves."""
    both = {r.name for r in train.source.records} & {r.name for r in test.source.records}
    if both:
        raise UserError(
            f"{len(both)} images, as {min(both)}, are in {train.source.split} and {test.source.split}: "
            f"add a {test.source.split} split"
        )


def training_batches(
    recipe: Recipe, task: Task, images: DecodedImages, plan: Plan, start: int, accelerator: Accelerator
) -> Generator[Batch]:
    """Training batches from step ``start`` on: loaded, normalized on the device, erased, mixed."""
    seed, rank = recipe.train.seed, accelerator.process_index
    per_step = recipe.objective.views_per_step
    seen = partial(seen_views, views=len(recipe.views.sizes), per_step=per_step) if per_step else None
    classes = [task.read(record) for record in images.source.records] if recipe.data.balance else None
    loaded = train_batches(
        images,
        images.source.records,
        task,
        recipe.augment,
        recipe.views,
        Steps(plan.batch_size, seed, start, plan.steps, recipe.data.repeats, seen, classes),
        Rank(rank, accelerator.num_processes),
        LoaderOptions(recipe.data.workers, recipe.data.max_unreadable, reuse=True),
    )
    known = set(images.decode_warnings())
    for step, raw in enumerate(loaded, start):
        for name, what in raw.notes:
            if what.startswith("unreadable") and name not in known and len(known) < _TOLD:
                log.info("training image %s is %s", name, what)
                known.add(name)
        batch = normalize(raw, recipe.data.mean, recipe.data.std, accelerator.device)
        batch = erase(batch, recipe.augment.erasing, seed, step // plan.steps_per_epoch)
        batch = task.mixed(batch, recipe.mix, mix_rng(seed, step, rank))
        yield batch if seen is None else batch.window(seen(step))


def scored_batches(
    recipe: Recipe,
    reader: TargetReader,
    images: DecodedImages,
    size: Size,
    device: torch.device,
    rank: Rank = Rank(),
) -> Iterator[Batch]:
    """Every readable image once over all ranks, as one normalized view of ``size`` on ``device``."""
    loaded = eval_batches(
        images,
        images.source.records,
        reader,
        size,
        framing=framing_of(recipe, size),
        batch_size=recipe.evaluate.batch_size,
        rank=rank,
        options=LoaderOptions(recipe.data.workers, reuse=True),
    )
    for batch in loaded:
        images.add_warnings(batch.notes)
        yield normalize(batch, recipe.data.mean, recipe.data.std, device)


def framing_of(recipe: Recipe, size: Size) -> Framing:
    """How evaluation shows a picture at a size; a task that answers with places sees all of it."""
    fit = shows_whole(recipe)
    return Framing(crop_ratio(recipe), recipe.evaluate.warps(size), fit, interpolation_of(recipe))


def shows_whole(recipe: Recipe) -> bool:
    """Whether pictures are never cropped: so for boxes and maps, which may lie anywhere."""
    return wanted_by(recipe.task, recipe.objective) in ("boxes", "maps")


def crop_ratio(recipe: Recipe) -> float:
    """The center-crop ratio of evaluation: the recipe's, or the family's own."""
    return recipe.evaluate.crop or float(variant(recipe.model["name"]).preprocessing["crop_pct"])


def interpolation_of(recipe: Recipe) -> str:
    """How evaluation resizes an image: the recipe's way, or the model's own."""
    own: str = variant(recipe.model["name"]).preprocessing["interpolation"]
    return recipe.evaluate.interpolation or own


def describe_preprocessing(recipe: Recipe, sizes: Sequence[Size] = ()) -> str:
    """How evaluation shows an image to the model at ``sizes`` (the recipe's if none), for people."""
    crop = crop_ratio(recipe)
    side = "the size" if crop == 1 else f"int(size / {crop:g})"
    warped = {recipe.evaluate.warps(size) for size in sizes or evaluated_sizes(recipe)}
    cut = f"short side to {side}, center crop"
    if shows_whole(recipe):
        cut = "as large as fits into the size, black beyond"
    if warped == {True}:
        cut = "warped to the size"
    if len(warped) > 1:
        cut += f", from {recipe.evaluate.warp} px on warped to the size"
    clip = recipe.clip if frames_of(recipe) is not None else None
    shown = RGB if clip else None  # every frame has the same
    mean, std = (" ".join(f"{v:g}" for v in values[:shown]) for values in (recipe.data.mean, recipe.data.std))
    if clip:
        cut = f"{clip.frames} frames of a film ({clip.sampling}), {cut}"
    return f"{cut}; {interpolation_of(recipe)}, antialiased; mean {mean}, std {std}"


def evaluated_sizes(recipe: Recipe) -> tuple[Size, ...]:
    """The sizes the recipe is scored at."""
    return parse_sizes([str(size) for size in recipe.evaluate.sizes])


def describe_images(images: DecodedImages, part: str, most: int = 10) -> Iterator[str]:
    """What was done with the images that are not plain: a sentence for each of ``most``, then how many there are."""
    found = images.decode_warnings()
    yield from (f"{part} image {name}: {what}" for name, what in list(found.items())[:most])
    if len(found) > most:
        yield f"... {len(found)} such {part} images in all"
