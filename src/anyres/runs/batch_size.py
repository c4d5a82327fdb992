"""``data.batch_size=auto``: the largest power of two whose step fits into the memory, found before a run begins.

On a CUDA device steps of growing size are made until the memory is too small. Elsewhere a system that runs out of
memory kills the process, so nothing is tried: two small steps tell what an image more takes. Both work on copies of
what is trained, and every draw of a run is a function of its seed and step, so a run with ``auto`` is the run with the
number that was found.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from anyres.config import UserError
from anyres.data.cache import DecodedImages
from anyres.data.loader import PREFETCHED, choose_workers
from anyres.models.contract import Network
from anyres.recipe import Recipe, read_recipe
from anyres.runs.bounds import memory
from anyres.runs.inputs import training_batches
from anyres.runs.learner import build_learner, fitting_batch, make_plan
from anyres.runs.opened import RECIPE, WEIGHTS
from anyres.runs.teacher import Teacher
from anyres.tasks import Task
from anyres.training import checkpoint
from anyres.training.clock import memory_gib
from anyres.training.objectives import Objective
from anyres.training.state import State
from anyres.training.step import NonFiniteLoss, make_step, rehearse

log = logging.getLogger(__name__)
LARGEST = 1024
"""Images of a step, at most: beyond, more of them need another recipe."""
ROOM = 0.8
"""Share of the memory that a step may take."""
TRANSIENT = 1.5
"""What a step takes beside one byte that is kept for the backward pass: gradients and temporary results."""
VALUE_BYTES = 8
"""Of a value of a view on the device: as it is, and mixed."""

Learner = tuple[Objective, State]
"""What is trained, with its optimizer."""


@dataclass(frozen=True)
class Trial:
    """What a step is tried with; the model stays as it is."""

    task: Task
    model: Network
    images: DecodedImages
    accelerator: Accelerator
    teacher: Teacher | None


def as_begun(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with the number that the run in this folder has found, if one has begun there."""
    begun = (run / WEIGHTS).exists() or bool(checkpoint.found(run))
    if recipe.data.batch_size != "auto" or not begun or not (run / RECIPE).is_file():
        return recipe
    return _with(recipe, read_recipe(run / RECIPE).data.step_images)


def with_batch_size(recipe: Recipe, trial: Trial) -> Recipe:
    """The recipe with a number in place of ``auto``; as it is where it has one.

    Raises UserError where not even the smallest step fits, and for several processes.
    """
    if recipe.data.batch_size != "auto":
        return recipe
    if trial.accelerator.num_processes > 1:
        raise UserError("data.batch_size=auto is for one process, and several train here: give a number")
    most = fitting_batch(len(trial.images), 1)
    sizes = candidates(most, recipe.train.accumulate)
    on_cuda = trial.accelerator.device.type == "cuda"
    found = _by_trial(recipe, trial, sizes) if on_cuda else _by_measure(recipe, trial, sizes)
    if found is None:
        raise UserError(
            f"the memory is too small for {sizes[0]} images at {recipe.views.summary} px: set "
            "train.grad_checkpointing=true, lower views.sizes, or choose a smaller model"
        )
    limit = "there are few images" if found == most < LARGEST else "more is seldom better" if found == LARGEST else ""
    log.info("data.batch_size=auto: %d images a step%s", found, f" ({limit})" if limit else ", as the memory allows")
    return _with(recipe, found)


def _with(recipe: Recipe, found: int) -> Recipe:
    return replace(recipe, data=replace(recipe.data, batch_size=found))


def candidates(most: int, accumulate: int) -> list[int]:
    """Powers of two from two images for each of ``accumulate`` parts to ``most``, and at least one number."""
    first = 1 << max(2 * accumulate - 1, 1).bit_length()
    top = min(most, LARGEST)
    return [size for size in (first << i for i in range(11)) if size <= top] or [max(top, accumulate)]


def largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The last of ``sizes``, which grow, before the first that does not fit; None: none does."""
    found = None
    for size in sizes:
        if not fits(size):
            break
        found = size
    return found


def _by_trial(recipe: Recipe, trial: Trial, sizes: Sequence[int]) -> int | None:
    """By steps that are made until memory runs out, or nearly."""
    device = trial.accelerator.device
    room = ROOM * torch.cuda.get_device_properties(device).total_memory

    def fits(size: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            with _learning(recipe, trial) as learner:
                _step(recipe, trial, learner, size, update=True)
        except torch.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return torch.cuda.max_memory_reserved(device) <= room

    return largest(sizes, fits)


def _by_measure(recipe: Recipe, trial: Trial, sizes: Sequence[int]) -> int | None:
    """By what two small steps keep for their backward passes, beside what the process takes already."""
    with _learning(recipe, trial) as learner:
        kept = []
        for size in (sizes[0], 2 * sizes[0]):
            counted = KeptBytes()
            with torch.autograd.graph.saved_tensors_hooks(counted.keep, lambda held: held.tensor):
                _step(recipe, trial, learner, size, update=False)
            kept.append(counted.most)
        weights = sum(p.numel() * p.element_size() for p in learner[1].model.parameters())
    workers = recipe.data.workers
    workers = choose_workers(trial.images.cached) if workers is None else workers
    values = trial.images.channels * sum(size.height * size.width for size in recipe.views.parsed)
    each = TRANSIENT * (kept[1] - kept[0]) / sizes[0] + values * (VALUE_BYTES + workers * (PREFETCHED + 2))
    taken = memory_gib(torch.device("cpu")) * 2**30 + 4 * weights  # gradients, an optimizer's two numbers, the average
    room = ROOM * memory()
    return largest(sizes, lambda size: taken + size * each <= room)


@contextmanager
def _learning(recipe: Recipe, trial: Trial) -> Iterator[Learner]:
    """Copies of what is to be trained, ready for a step."""
    model = copy.deepcopy(trial.model)
    objective, state = build_learner(recipe, trial.task, model, trial.accelerator, trial.teacher)
    accelerator, scaler = trial.accelerator, trial.accelerator.scaler
    scale = scaler.state_dict() if scaler is not None else {}
    objective.student = accelerator.prepare_model(objective.student)
    state.optimizer = accelerator.prepare(state.optimizer)
    try:
        yield objective, state
    finally:
        accelerator.free_memory()
        if scaler is not None:
            scaler.load_state_dict(scale)


def _step(recipe: Recipe, trial: Trial, learner: Learner, size: int, *, update: bool) -> None:
    """The first step of a run with so many images."""
    recipe = replace(recipe, data=replace(recipe.data, batch_size=size, workers=0))
    plan, (objective, state) = make_plan(recipe, len(trial.images)), learner
    with closing(training_batches(recipe, trial.task, trial.images, plan, 0, trial.accelerator)) as batches:
        batch = next(batches)
    made = make_step if update else rehearse
    with suppress(NonFiniteLoss):  # the run itself will say so
        made(trial.accelerator, objective.student, objective, state, batch, plan)


class KeptBytes:
    """How many bytes autograd keeps for backward passes, and the most at once: ``keep`` is its hook for packing."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._uses: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Held:
        """Count a tensor until autograd lets it go; memory that tensors share counts once."""
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        uses = self._uses.get(place, 0)
        self._uses[place] = uses + 1
        self.now += 0 if uses else size
        self.most = max(self.most, self.now)
        return Held(tensor, self, place, size)

    def let_go(self, place: int, size: int) -> None:
        """One tensor of this memory is no longer kept."""
        self._uses[place] -= 1
        if not self._uses[place]:
            del self._uses[place]
            self.now -= size


class Held:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor, counted: KeptBytes, place: int, size: int) -> None:
        self.tensor, self._counted, self._place, self._size = tensor, counted, place, size

    def __del__(self) -> None:
        self._counted.let_go(self._place, self._size)
