"""Attention as maps, at any height and width: hooks record what the last block was given, and its slow twin answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anyres.config import UserError
from anyres.maps.readers import Reader, resolved
from anyres.models.contract import Backbone
from anyres.ops.patch import grid_of


@dataclass(frozen=True)
class Attended:
    """Attention of some images, and what the model answered."""

    maps: Float[Tensor, "b g rows columns"]
    """At least 0, each summing to 1 at most: what is missing is attention to class tokens, and nothing is renormalized.
    One for each head, or of several class tokens one for each class."""
    logits: Float[Tensor, "b k"]
    layer: int
    """Counted from 0."""
    stride: int
    """Pixels of the image on a side of each position; the last row and column may reach beyond the image."""
    per_class: bool
    """Whether there is a map for each class."""


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, tuple[tuple[Any, ...], Any]]]:
    """Inside, a module that has run is found with its inputs and its output; the model runs as always."""
    seen: dict[nn.Module, tuple[tuple[Any, ...], Any]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen[module] = (inputs, output)

    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def reader_of(model: Backbone) -> Reader:
    """How the model's attention is read. Raises UserError where its family has none that is a map."""
    reader = resolved(model)
    if reader is None:
        raise UserError(
            f"{model.called} has no attention that is read as a map here: use method cam, gradients or occlusion"
        )
    return reader


def layers_of(model: nn.Module, reader: Reader) -> dict[str, list[nn.Module]]:
    """Name of a block -> its attention modules, first block to last; a parallel block has two."""
    blocks: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, reader.attention):
            blocks.setdefault(name.rpartition(".")[0], []).append(module)
    return blocks


def stride_at(model: Backbone, block: str) -> int:
    """Pixels on a side of each position of a block: of the feature it belongs to, or else of the last one."""
    within = (info for info in model.feature_info if f"{block}.".startswith(f"{info['module']}."))
    return int(next(within, model.feature_info[-1])["reduction"])


def place_of(layer: int | None, count: int, model: Backbone) -> int:
    """A layer counted from 0 (negative: from the end; None: the last). Raises UserError."""
    wanted = -1 if layer is None else layer
    if not -count <= wanted < count:
        raise UserError(f"layer {layer} is out of range: {model.called} has {count}, 0 to {count - 1}")
    return wanted % count


@torch.no_grad()
def attention_maps(model: Backbone, x: Float[Tensor, "b k h w"], layer: int | None = None) -> Attended:
    """What the model attends to in normalized images ``x`` of any height and width; ``layer``: see ``place_of``.

    A plain ViT, ResFormer, DINO, CaiT: the class token's attention to each patch, a map for each head. ResT: attention
    to each key of the shrunk map, the mean of all queries, as its head averages them. PatchConvNet: its pooling, one
    map, or of the multi-token kind one for each class. The model is left as it is, and should be in evaluation mode.
    Raises UserError for a model without such attention, and for a layer that it does not have.
    """
    reader = reader_of(model)
    layers = layers_of(model, reader)
    place = place_of(layer, len(layers), model)
    block, modules = list(layers.items())[place]
    with recorded(modules) as seen:
        logits = model(x)
    answered = 1 if reader.queries == "token" else None
    twins = [reader.twin(module, *seen[module][0], queries=answered) for module in modules]
    weights = torch.cat([twin.weights for twin in twins], dim=1)  # (b, g, q, m)
    rows = weights.mean(2) if reader.queries == "mean" else weights.flatten(1, 2)  # (b, g, m)
    stride = stride_at(model, block) * twins[0].reduction
    grid = grid_of((x.shape[-2], x.shape[-1]), stride)
    maps = rows[:, :, -math.prod(grid) :].reshape(*rows.shape[:2], *grid)  # patches are the last of the keys
    return Attended(maps, logits, place, stride, reader.queries == "classes" and model.num_classes == maps.shape[1] > 1)


def top_mass(maps: Float[Tensor, "*n rows columns"], share: float = 0.6) -> Bool[Tensor, "*n rows columns"]:
    """DINO's masks (visualize_attention): of each map the most attended positions that hold ``share`` of its mass.

    Positions are added from the least attended on, and kept once the sum has passed 1 - ``share``. Raises UserError
    unless ``share`` lies between 0 and 1.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of the mass that a mask keeps is {share}: it must lie between 0 and 1, as 0.6")
    flat = maps.flatten(-2)
    least, order = flat.sort(dim=-1)
    mass = least.cumsum(-1) / least.sum(-1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter(-1, order, mass > 1 - share)
    return kept.reshape(maps.shape)
