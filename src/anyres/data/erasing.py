"""Random erasing: a box of noise in a view, drawn for all images of a batch and painted at once.

Zhong, Zheng, Kang, Li, Yang: "Random Erasing Data Augmentation", AAAI 2020, arXiv:1708.04896, with timm's noise for
each pixel and its order of draws, so that from one seed the box and the noise are timm's.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from anyres.data.augment import mix_seed
from anyres.flow import Batch, send

LEAST_AREA, MOST_AREA = 0.02, 1 / 3
"""Shares of the view that a box may have."""
LEAST_ASPECT = 0.3
"""A box's height by its width, and its width by its height, are at least this."""
ATTEMPTS = 10
"""After so many boxes that do not fit there is none."""
_CHOOSE, _ERASE, _STAGES = 2, 1, 4  # stages of the seed, and their number: see anyres.data.mix


@dataclass(frozen=True)
class Box:
    """A box of ``height`` x ``width`` pixels in one image of a view; ``seed`` is its noise's."""

    image: int
    top: int
    left: int
    height: int
    width: int
    seed: int


def erase(batch: Batch, probability: float, seed: int, epoch: int) -> Batch:
    """Normalised views with, in each with ``probability``, a box of N(0, 1) noise of 2-33 % of the area (in place).

    Box and noise depend on (seed, epoch, index, draw, view) alone, whatever the device and rank.
    """
    if probability <= 0:
        return batch
    for i, view in enumerate(batch.views):
        boxes = list(draw_boxes(batch, i, probability, seed, epoch))
        if view.device.type == "cpu":
            paint_each(view, boxes)
        elif boxes:
            paint(view, boxes)
    return batch


def draw_boxes(batch: Batch, i: int, probability: float, seed: int, epoch: int) -> Iterator[Box]:
    """The boxes of the batch's view ``i``, at most one for each image, in the images' order."""
    height, width = batch.views[i].shape[-2:]
    draws = [0] * len(batch.index) if batch.draw is None else batch.draw.tolist()
    for image, (index, draw) in enumerate(zip(batch.index.tolist(), draws, strict=True)):
        if mix_seed(seed, epoch, index, i, _CHOOSE + _STAGES * draw) < probability * 2**63:
            number = mix_seed(seed, epoch, index, i, _ERASE + _STAGES * draw)
            if place := draw_place(height, width, random.Random(number)):
                yield Box(image, *place, number)


def draw_place(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of a box in a view of ``height`` x ``width`` pixels; None where none of ten fits.

    Its area is uniform, its aspect ratio log-uniform, its place uniform.
    """
    rng.random()  # whether there is a box at all, which is decided already
    bounds = math.log(LEAST_ASPECT), math.log(1 / LEAST_ASPECT)
    for _ in range(ATTEMPTS):
        area = rng.uniform(LEAST_AREA, MOST_AREA) * (height * width)
        aspect = math.exp(rng.uniform(*bounds))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return rng.randint(0, height - h), rng.randint(0, width - w), h, w
    return None


def draw_noise(boxes: Sequence[Box], channels: int) -> Iterator[Float32[Tensor, "c _ _"]]:
    """The noise of each box: N(0, 1), from the CPU's generator, on whichever device it ends."""
    generator = torch.Generator()
    for box in boxes:
        generator.manual_seed(box.seed)
        yield torch.empty(channels, box.height, box.width).normal_(generator=generator)


def paint_each(view: Float[Tensor, "b c h w"], boxes: Sequence[Box]) -> None:
    """The noise put into the view box by box: fastest on a CPU, where a box is in the cache still."""
    for box, noise in zip(boxes, draw_noise(boxes, view.shape[1]), strict=True):
        view[box.image, :, box.top : box.top + box.height, box.left : box.left + box.width] = noise


def paint(view: Float[Tensor, "b c h w"], boxes: Sequence[Box]) -> None:
    """The same by one copy to the device and one kernel there, however many boxes there are."""
    noise = torch.cat([part.flatten() for part in draw_noise(boxes, view.shape[1])])
    noise = send(noise, view.device).to(view.dtype)
    where = _positions(view.shape, boxes, view.device)
    if view.is_contiguous():
        view.view(-1).index_copy_(0, where, noise)
    else:
        view.copy_(view.contiguous().view(-1).index_copy_(0, where, noise).view(view.shape))


def _positions(shape: Sequence[int], boxes: Sequence[Box], device: torch.device) -> Int64[Tensor, " n"]:
    """Where in the flat view each value of the boxes' noise goes, box after box."""
    _, channels, height, width = shape
    sizes = [channels * box.height * box.width for box in boxes]
    starts = [0, *itertools.accumulate(sizes)]
    rows = [
        (start, box.height * box.width, box.width, ((box.image * channels) * height + box.top) * width + box.left)
        for start, box in zip(starts, boxes, strict=False)
    ]
    table = send(torch.tensor(rows, dtype=torch.int64), device)  # (boxes, 4)
    number = torch.arange(starts[-1], device=device)
    start, area, wide, first = table.T.contiguous()
    box = torch.bucketize(number, start, right=True) - 1
    within = number - start[box]
    channel, pixel = within // area[box], within % area[box]
    where: Tensor = first[box] + channel * (height * width) + pixel // wide[box] * width + pixel % wide[box]
    return where
