"""A large picture answered in overlapping tiles, each shown to the model as a picture of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.geometry import whole
from anyres.data.mix import normalize
from anyres.evaluation.joined import parts_of, shown_part
from anyres.flow import Batch, Geometry, Labels, Size
from anyres.runs.inputs import framing_of
from anyres.runs.opened import TrainedModel
from anyres.tasks import Answer, AnswerOptions

AT_ONCE = 8  # tiles that the model sees together


def tile_answerer(
    trained: TrainedModel, size: Size, side: int, how: AnswerOptions
) -> Callable[[Sequence[Tensor]], list[Answer]]:
    """A function from pictures, uint8 (c, h, w), to answers, each joined from tiles of ``side`` pixels that the model
    sees at ``size``. It raises UserError where the task's answers cannot be joined, or are not finite."""

    def answers(pictures: Sequence[Tensor]) -> list[Answer]:
        return [
            trained.task.joined(
                tile_outputs(trained, picture, size, side), replace(how, of_size=Size(*picture.shape[-2:]))
            )
            for picture in pictures
        ]

    return answers


def tile_outputs(
    trained: TrainedModel, picture: UInt8[Tensor, "c h w"], size: Size, side: int
) -> Iterator[tuple[Any, Geometry]]:
    """The model's output for each tile, and where in the picture its view's pixels come from."""
    of_size = Size(*picture.shape[-2:])
    places = parts_of(of_size, side)
    for first in range(0, len(places), AT_ONCE):
        some = places[first : first + AT_ONCE]
        tiles = [picture[:, top : top + height, left : left + width] for top, left, height, width in some]
        outputs = _outputs(trained, tiles, size)
        for output, tile, (top, left, _, _) in zip(outputs, tiles, some, strict=True):
            found, geometry = shown_part(output, _seen(trained, tile, size))
            yield found, _placed(geometry, of_size, top, left)


def _outputs(trained: TrainedModel, tiles: Sequence[Tensor], size: Size) -> Sequence[Any]:
    """Of each tile, what the model says of it. Raises UserError for numbers that are not finite."""
    recipe, framing = trained.recipe, framing_of(trained.recipe, size)
    views = torch.stack([framing.view(whole(tile), size).pixels for tile in tiles])
    batch = Batch((views,), Labels(torch.full((len(tiles),), -1)), torch.arange(len(tiles)))
    pixels = normalize(batch, recipe.data.mean, recipe.data.std, trained.device).views[0]
    with torch.inference_mode(), torch.autocast(trained.device.type, trained.autocast, trained.autocast is not None):
        outputs: Any = trained.model(pixels)
    each = list(outputs.float()) if isinstance(outputs, Tensor) else outputs
    for output in each:
        if not all(bool(x.isfinite().all()) for x in (output.values() if isinstance(output, Mapping) else (output,))):
            raise UserError(f"{trained.name} answers with numbers that are not finite: its weights are of no use")
    return each


def _seen(trained: TrainedModel, tile: Tensor, size: Size) -> Geometry:
    """Where the pixels of a tile's view come from, in the tile."""
    return framing_of(trained.recipe, size).geometry(whole(tile).geometry, size)


def _placed(geometry: Geometry, of_size: Size, top: int, left: int) -> Geometry:
    """The same in the picture of which the tile is a part."""
    y, x, height, width = geometry.crop
    return Geometry(of_size, (top + y, left + x, height, width), geometry.size)
