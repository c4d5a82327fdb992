"""A frozen model that teaches: opened by name, seeing the student's views in its own way, answering in its classes.

view (b, 3, h, w) -> the teacher's normalization, and size if asked -> logits -> the student's classes (b, k)
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from anyres.config import UserError, first_line, nearest
from anyres.evaluation.classes import Names
from anyres.evaluation.imagenet import COUNT, imagenet_names
from anyres.flow import Size
from anyres.models import create_model, variant
from anyres.models.contract import Backbone, count_classes
from anyres.models.index import known_weights
from anyres.models.registry import is_model, model_names, official_name
from anyres.models.state_files import read_state, weights_file
from anyres.recipe import Recipe
from anyres.runs.opened import RECIPE, load
from anyres.training.parallel import autocast_dtype

KEY = "objective.distillation"


@dataclass(frozen=True)
class Teacher:
    """Called with a view as the student sees it; nothing of it is trained.

    ``own``: its native size; ``names``: what its classes are called, () where nobody said; ``scale`` and ``shift``
    (3, 1, 1) turn the student's normalization into its own; ``class_map`` (k, m) are the teacher's classes for each of
    the student's, filled up with the count of its classes (None: the same classes in the same order).
    """

    name: str
    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    own: Size
    names: Names
    scale: Tensor | None = None
    shift: Tensor | None = None
    resize: bool = False
    class_map: Tensor | None = None
    dtype: torch.dtype | None = None

    def summary(self) -> str:
        """One sentence on who teaches."""
        weight = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"taught by {self.name}, {weight:.2f} M parameters, " + (
            f"which sees every view at {self.own} px" if self.resize else "which sees every view as it is"
        )

    @torch.no_grad()
    def __call__(self, view: Float[Tensor, "b 3 h w"]) -> Float32[Tensor, "b k"]:
        """The logits of each of the student's classes; where several of the teacher's are one, of any of them."""
        if self.scale is not None and self.shift is not None:
            view = view * self.scale + self.shift
        if self.resize and tuple(view.shape[-2:]) != self.own:
            view = nn.functional.interpolate(view, size=self.own, mode="bicubic", antialias=True)
        with torch.autocast(view.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits: Tensor = self.model(view)
        logits = logits.float()
        if self.class_map is None:
            return logits
        nothing = logits.new_full((len(logits), 1), -torch.inf)
        return torch.cat([logits, nothing], 1)[:, self.class_map].logsumexp(-1)  # (b, kt + 1) -> (b, k, m) -> (b, k)


def build_teacher(recipe: Recipe, classes: Sequence[str], device: torch.device) -> Teacher | None:
    """The recipe's teacher for a student with these classes, on ``device``; None where the recipe has none.

    Raises UserError when it cannot be had, does not see one of the sizes, or its classes are others.
    """
    how = recipe.objective.distillation
    if how.teacher is None:
        return None
    found = open_teacher(how.teacher, how.weights)
    found.model.to(device).eval().requires_grad_(False)
    matched = match_classes(classes, found, Path(how.classes) if how.classes else None)
    mean, std, their_mean, their_std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (recipe.data.mean, recipe.data.std, found.mean, found.std)
    )
    same = recipe.data.mean == found.mean and recipe.data.std == found.std
    made = replace(
        found,
        scale=None if same else std / their_std,
        shift=None if same else (mean - their_mean) / their_std,
        resize=how.size == "own",
        class_map=None if matched is None else _padded(matched, len(found.names)).to(device),
        dtype=autocast_dtype(recipe.train.precision),
    )
    for size in dict.fromkeys(recipe.views.parsed):
        _try(made, size, len(classes), device)
    return made


def has_two_heads(model: nn.Module) -> bool:
    """Whether a model has a classifier of its own for a teacher's lessons (the distilled DeiT)."""
    return isinstance(model, Backbone) and model.two_heads


def open_teacher(what: str, weights: str | None) -> Teacher:
    """A run folder, a model or known weights of ours, ``timm:NAME`` or ``torchvision:NAME``, or a bare name of timm's;
    on the CPU."""
    import timm

    rows = {row.name: row.model for row in known_weights()}
    ours = {*model_names(), *rows}
    model = official_name(what) if is_model(what) else f"timm:{what}"
    if weights is not None and rows.get(weights) == model:  # then its transform and classes are known
        return _of_ours(weights, None)
    if (Path(what) / RECIPE).is_file() or what in ours:
        return _of_ours(what, weights)
    if is_model(what):
        return _of_library(what, what, weights)
    if timm.is_model(what):
        return _of_library(what, f"timm:{what}", weights)
    hint = nearest(what, [*ours, *timm.list_models()])
    raise UserError(
        f"{KEY}.teacher={what} is no run folder, no model of ours or of timm's, and no torchvision:NAME{hint}"
    )


def _of_ours(what: str, weights: str | None) -> Teacher:
    if weights is None and is_model(what):
        rows = [row for row in known_weights(official_name(what)) if row.url]
        if not rows:
            raise UserError(f"{KEY}.teacher={what}: no weights of it can be fetched; set {KEY}.weights to a file")
        what = rows[0].name
    opened = load(what, weights)
    names = opened.names if all(opened.names) or weights else _imagenet_names(len(opened.names), opened.names)
    if not names:
        raise UserError(f"{KEY}.teacher={what} has no classifier: it has nothing to teach")
    mean, std = opened.recipe.data.mean, opened.recipe.data.std
    return Teacher(what, opened.backbone, mean, std, opened.recipe.views.parsed[0], names)


def _of_library(what: str, name: str, weights: str | None) -> Teacher:
    """A model of timm's or torchvision's with its published weights, or with those of a file."""
    try:
        classes = None
        if weights is not None:
            state = read_state(weights_file(weights))
            classes = count_classes(variant(name).preprocessing["classifier"], state) or None
        model = create_model(name, classes, pretrained=weights or True).eval()
    except UserError as error:
        key = f"{KEY}.teacher={what}" if weights is None else f"{KEY}.weights={weights}"
        mend = "" if weights is not None else f"; or set {KEY}.weights to a file"
        raise UserError(f"{key} cannot be had: {error}{mend}") from None
    cfg, count = model.pretrained_cfg, model.num_classes
    nameless: Names = ((),) * count
    names = _imagenet_names(count, nameless) if weights is None else nameless
    return Teacher(what, model, tuple(cfg["mean"]), tuple(cfg["std"]), Size(*cfg["input_size"][-2:]), names)


def _imagenet_names(count: int, otherwise: Names) -> Names:
    """ImageNet-1k's classes where there are as many as that; else ``otherwise``."""
    return imagenet_names() if count == COUNT else otherwise


def match_classes(student: Sequence[str], teacher: Teacher, file: Path | None) -> list[list[int]] | None:
    """The teacher's classes for each of the student's: as ``file`` says, by name, or in the same order (None).

    Raises UserError where that cannot be.
    """
    name, names = teacher.name, teacher.names
    if file is not None:
        return _read_matches(file, student, names)
    mend = f"set {KEY}.classes to a CSV file with the columns student,teacher"
    if not all(names):
        if len(student) != len(names):
            raise UserError(f"{name} has {len(names)} classes and the images {len(student)}: {mend}")
        return None
    indices = _by_name(names)
    found = [indices.get(each, []) for each in student]
    for each, where in zip(student, found, strict=True):
        if len(where) != 1:
            wrong = "stands for several" if where else "is none"
            raise UserError(f"{each!r} {wrong} of the {len(names)} classes of {name}: {mend}")
    return None if found == [[i] for i in range(len(names))] else found


def _read_matches(file: Path, student: Sequence[str], teacher: Names) -> list[list[int]]:
    """A CSV file with the columns ``student,teacher``, each cell a class's name or index; several lines for one."""
    try:
        lines = list(csv.DictReader(file.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as CSV: {first_line(error)}") from None
    ours, theirs = _by_name([(each,) for each in student]), _by_name(teacher)
    found: list[list[int]] = [[] for _ in student]
    for number, line in enumerate(lines, 2):
        cells = []
        for column, known, count in (("student", ours, len(student)), ("teacher", theirs, len(teacher))):
            cell = (line.get(column) or "").strip()
            where = known.get(cell) or ([int(cell)] if cell.isdecimal() and int(cell) < count else [])
            if len(where) != 1:
                wrong = "stands for several" if where else "is none"
                raise UserError(f"{file}, line {number}: {cell!r} {wrong} of the {column}'s {count} classes")
            cells.append(where[0])
        found[cells[0]].append(cells[1])
    missing = [each for each, where in zip(student, found, strict=True) if not where]
    if missing:
        raise UserError(f"{file} has no line for {missing[0]!r}: each of the student's classes needs one or more")
    return found


def _by_name(names: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for i, called in enumerate(names):
        for name in dict.fromkeys(called):
            indices.setdefault(name, []).append(i)
    return indices


def _padded(matched: list[list[int]], count: int) -> Tensor:
    """Lists of the teacher's classes -> int64 (k, m), filled up with ``count``."""
    longest = max(map(len, matched))
    return torch.tensor([where + [count] * (longest - len(where)) for where in matched])


def _try(teacher: Teacher, size: Size, classes: int, device: torch.device) -> None:
    """Raises UserError unless the teacher answers to a view of this size with a logit for each class."""
    try:
        answer = teacher(torch.zeros(1, 3, *size, device=device))
    except Exception as error:  # whatever a foreign model raises at a size that it does not take
        mend = "choose another" if teacher.resize else f"set {KEY}.size=own or choose another"
        raise UserError(f"{teacher.name} cannot see a view of {size} px ({first_line(error)}): {mend}") from None
    if tuple(answer.shape) != (1, classes):
        raise UserError(f"{teacher.name} answers with {tuple(answer.shape)}, not with logits of {classes} classes")
