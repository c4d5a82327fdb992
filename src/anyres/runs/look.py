"""What a trained model looks at in images: maps as tensors, drawings, and the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from anyres.config import UserError, nearest
from anyres.data.decode import Unreadable, decode
from anyres.data.mix import normalize
from anyres.data.views import eval_view
from anyres.deploy.predictor import Picture, listed, pixels_of, size_of
from anyres.evaluation.plots.sheet import png_of
from anyres.flow import Batch, Labels, Record, Size
from anyres.maps.attention import top_mass
from anyres.maps.draw import heat, lit, over_pixels
from anyres.maps.look import Method, look_at, method_of
from anyres.maps.page import LookPage, PageImage, Panel, write_page
from anyres.runs.bounds import check_sizes_fit
from anyres.runs.inputs import crop_ratio, interpolation_of
from anyres.runs.opened import Model, TrainedModel, open_model
from anyres.runs.stderr import show_log
from anyres.storage import write_bytes

PAGE = "look.html"
SHARE = 0.6
"""Of a map's mass that a mask holds, as in DINO's figures."""
MEANING: dict[Method, str] = {
    "attention": "Brightness is attention, from none to the map's highest; the masks keep the positions that hold "
    "{share:.0%} of it. Attention says where information was taken from, not which class it speaks for.",
    "cam": "Class activation: brighter positions speak for the class named, by gradient x activation; what speaks "
    "against it is left dark. The masks keep the positions that hold {share:.0%} of it.",
    "gradients": "Integrated gradients, absolute: how much each pixel moves the class's logit on the way from the mean "
    "color to the image. The masks keep the pixels that hold {share:.0%} of it.",
    "occlusion": "By how much the class's logit falls where a window is covered with the mean color. The masks keep "
    "the pixels that hold {share:.0%} of it.",
}


@dataclass(frozen=True)
class LookOptions:
    """How images are looked at; None: the largest size it was trained at, the usual method, its last layer, and the
    likeliest class."""

    size: Size | None = None
    method: str | None = None
    class_name: str | None = None
    layer: int | None = None


@dataclass(frozen=True)
class Look:
    """What a model looks at in one image."""

    picture: UInt8[Tensor, "c height width"]
    """What the model saw."""
    maps: Float32[Tensor, "g rows columns"]
    """At least 0. Attention: one for each head (several class tokens: that of the class alone), each summing to 1 at
    most, as what goes to class tokens is left out. cam, gradients and occlusion: one, in logits of the class."""
    names: tuple[str, ...]
    """Of the maps."""
    stride: int
    """Pixels on a side of each position; the last row and column may reach beyond the picture. 1: maps are of pixels,
    (height, width)."""
    method: Method
    layer: int | None
    """Counted from 0; None: of the whole model."""
    of: str | None
    """The class the maps speak for; None: for every class alike."""
    answer: str
    """The likeliest class; empty where the model has no classifier."""
    probability: float
    """Of the answer; nan without a classifier."""

    def masks(self, share: float = SHARE) -> Bool[Tensor, "g rows columns"]:
        """Of each map the positions that hold ``share`` of its mass (DINO's threshold). Raises UserError."""
        return top_mass(self.maps, share)

    def pixels(self) -> Float32[Tensor, "g height width"]:
        """The maps over the picture: each position's value on all of its pixels."""
        return over_pixels(self.maps, self.stride, (self.picture.shape[1], self.picture.shape[2]))


def look(
    model: Model,
    images: Picture | Sequence[Picture],
    *,
    size: str | int | Size | None = None,
    method: str | None = None,
    class_name: str | None = None,
    layer: int | None = None,
) -> list[Look]:
    """What a model looks at in each image, as maps of any height and width.

    ``images``: as `anyres.predict` takes them. ``size``: a side in pixels or ``"320x192"`` (None: the largest it was
    trained at). ``method``: ``attention`` (by slow twins of the fused kernels; the class token's, ResT's EMSA,
    PatchConvNet's pooling), or for any model by captum ``cam``, ``gradients`` or ``occlusion``; None: attention where
    the family has it, else cam. ``class_name``: the class that is explained, by name or index (None: the likeliest).
    ``layer``: counted from 0, negative from the end (None: the last).

    The model runs in float32. Returns a Look for each image: ``.maps`` float32 (g, rows, columns), at least 0;
    ``.masks()``, ``.pixels()``. Raises UserError, also for an image that cannot be read.
    """
    show_log()
    trained = open_model(model)
    options = LookOptions(size_of(size) if size is not None else None, method, class_name, layer)
    looker = Looker(trained, options)
    channels = len(trained.recipe.data.mean)
    return [looker(pixels_of(image, channels, looker.side)) for image in listed(images)]


class Looker:
    """Looks at one picture after another in the same way. Raises UserError where model and options do not fit."""

    def __init__(self, trained: TrainedModel, options: LookOptions) -> None:
        self.trained = trained
        self.model = trained.backbone
        self.size = options.size or trained.recipe.views.parsed[0]
        self.method = method_of(self.model, options.method)
        self.layer = options.layer
        self.of = None if options.class_name is None else class_index(trained, options.class_name)
        self.model.check_sizes([self.size])
        check_sizes_fit([self.size], trained.recipe, 1)

    @property
    def side(self) -> int:
        """The longer side, in pixels, to which an image is resized."""
        return math.ceil(max(self.size) / crop_ratio(self.trained.recipe))

    def view(self, picture: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c height width"]:
        """The picture as evaluation shows it to the model."""
        recipe = self.trained.recipe
        warp, how = recipe.evaluate.warps(self.size), interpolation_of(recipe)
        return eval_view(picture, self.size, crop_ratio(recipe), warp, how)

    def __call__(self, picture: UInt8[Tensor, "c h w"]) -> Look:
        trained, view = self.trained, self.view(picture)
        batch = Batch((view[None],), Labels(torch.tensor([-1])), torch.tensor([0]))
        pixels = normalize(batch, trained.recipe.data.mean, trained.recipe.data.std, trained.device).views[0]
        seen = look_at(self.model, pixels, self.method, self.layer, self.of)
        if not (seen.maps.isfinite().all() and seen.logits.isfinite().all()):
            raise UserError(f"{trained.name} answers with numbers that are not finite: its weights are of no use")
        answer, probability = self._answer(seen.logits)
        of = None if seen.of is None else trained.classes[seen.of]
        return Look(
            view,
            seen.maps,
            seen.names,
            seen.stride,
            self.method,
            seen.layer,
            of,
            answer=answer,
            probability=probability,
        )

    def _answer(self, logits: Float[Tensor, " k"]) -> tuple[str, float]:
        if not self.model.num_classes:
            return "", math.nan
        shares = logits.sigmoid() if self.trained.task.activation == "sigmoid" else logits.softmax(0)
        best = int(shares.argmax())
        return self.trained.classes[best], float(shares[best])


def class_index(trained: TrainedModel, name: str) -> int:
    """A class by its name, or by its index. Raises UserError that names the nearest ones."""
    if name in trained.classes:
        return trained.classes.index(name)
    if name.isdecimal() and int(name) < len(trained.classes):
        return int(name)
    raise UserError(f"{trained.name} has no class {name!r}{nearest(name, trained.classes)}")


def look_at_files(
    trained: TrainedModel, paths: Iterable[Path], options: LookOptions, out: Path, share: float = SHARE
) -> list[tuple[Path, Look | Unreadable]]:
    """Draw what the model looks at in each file: ``out/look.html``, and the drawings as PNGs in ``out/NAME``.

    Returns each file with its maps, or with why it cannot be read. Raises UserError.
    """
    looker = Looker(trained, options)
    channels = len(trained.recipe.data.mean)
    taken: Counter[str] = Counter()
    found: list[tuple[Path, Look | Unreadable]] = []
    shown: list[PageImage] = []
    for path in paths:
        try:
            picture = decode(Record(path, -1, str(path)), channels=channels, view_side=looker.side).image
        except Unreadable as error:
            found.append((path, error))
            continue
        seen = looker(picture)
        rows = panels(seen, share)
        taken[path.stem] += 1
        folder = out / (path.stem if taken[path.stem] == 1 else f"{path.stem}-{taken[path.stem]}")
        for panel in (panel for row in rows for panel in row):
            write_bytes(folder / f"{panel.name.replace(' ', '-')}.png", png_of(panel.image))
        found.append((path, seen))
        shown.append(PageImage(str(path), describe(seen), rows))
    notes = [f"{path}: {seen.reason}" for path, seen in found if isinstance(seen, Unreadable)]
    write_page(
        out / PAGE,
        LookPage(
            f"What {trained.name} looks at",
            f"{looker.method} at {looker.size} px, {len(shown)} images, weights {trained.weights}",
            MEANING[looker.method].format(share=share),
            shown,
            notes,
        ),
    )
    return found


def panels(seen: Look, share: float = SHARE) -> list[list[Panel]]:
    """The drawings of one image: the picture and the heat of each map, after it that of their mean; then the masks."""
    maps, names = seen.maps, seen.names
    if len(maps) > 1:
        maps, names = torch.cat((maps.mean(0, keepdim=True), maps)), ("mean", *names)
    size = (seen.picture.shape[1], seen.picture.shape[2])
    values = over_pixels(maps, seen.stride, size)
    kept = over_pixels(top_mass(maps, share), seen.stride, size)
    everything = torch.ones(size, dtype=torch.bool)
    first = Panel("picture", lit(seen.picture, everything), "the picture as the model saw it")
    heats = [
        Panel(f"{name} heat" if name != seen.method else "heat", heat(seen.picture, value), f"{name}: the map in color")
        for name, value in zip(names, values, strict=True)
    ]
    masks = [
        Panel(
            f"{name} mask" if name != seen.method else "mask",
            lit(seen.picture, mask),
            f"{name}: the part that holds {share:.0%} of the map",
        )
        for name, mask in zip(names, kept, strict=True)
    ]
    return [[first, *heats], masks]


def describe(seen: Look) -> str:
    """In a sentence: the answer, and what its maps are."""
    answered = f"{seen.answer} {100 * seen.probability:.1f} %; " if seen.answer else ""
    grid = f"{seen.maps.shape[1]}x{seen.maps.shape[2]}"
    of = f" for {seen.of}" if seen.of is not None else ""
    layer = f" of layer {seen.layer}" if seen.layer is not None else ""
    count = f"{len(seen.maps)} maps" if len(seen.maps) > 1 else "map"
    return f"{answered}{seen.method}{of}{layer}: {count} of {grid}"
