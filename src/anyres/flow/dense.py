"""Targets that have a place in the picture, for every view of it: objects, and class maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from anyres.flow.objects import Objects
from anyres.flow.record import Geometry


@dataclass(frozen=True, eq=False)
class ViewObjects:
    """The n objects in one view of one image.

    ``boxes``: float32 (n, 4), x1 y1 x2 y2 in pixels of the view. ``labels``: int64 (n,), indices of the classes.
    ``masks``: uint8 (n, H, W), 0 and 1; None where none were asked for. ``crowd``: bool (n,).
    """

    boxes: Float32[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    masks: UInt8[Tensor, "n _ _"] | None
    crowd: Bool[Tensor, " n"]

    def changed(self, change: Callable[[Tensor], Tensor]) -> ViewObjects:
        """Every tensor changed."""
        masks = None if self.masks is None else change(self.masks)
        return ViewObjects(change(self.boxes), change(self.labels), masks, change(self.crowd))


@dataclass(frozen=True)
class Instances:
    """The objects of a batch, ``value[view][image]``: as many in each as there are, so nothing is stacked."""

    value: tuple[tuple[ViewObjects, ...], ...]

    def __len__(self) -> int:
        return len(self.value[0]) if self.value else 0

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Instances:
        return Instances(tuple(tuple(each.changed(change) for each in view) for view in self.value))

    def to(self, device: torch.device) -> Instances:
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Instances:
        """In memory from which a GPU copies by itself; DataLoader calls this."""
        return self._changed(lambda tensor: tensor.pin_memory())

    def part(self, images: slice) -> Instances:
        return Instances(tuple(view[images] for view in self.value))

    def window(self, views: slice) -> Instances:
        return Instances(self.value[views])

    def of(self, view: int) -> tuple[ViewObjects, ...]:
        return self.value[view]


@dataclass(frozen=True)
class Maps:
    """The class maps of a batch: of each view uint8 (b, H, W), the class of each pixel, 255 where it is ignored."""

    value: tuple[UInt8[Tensor, "b _ _"], ...]

    def __len__(self) -> int:
        return len(self.value[0]) if self.value else 0

    def to(self, device: torch.device) -> Maps:
        return Maps(tuple(view.to(device, non_blocking=True) for view in self.value))

    def pin_memory(self) -> Maps:
        """In memory from which a GPU copies by itself; DataLoader calls this."""
        return Maps(tuple(view.pin_memory() for view in self.value))

    def part(self, images: slice) -> Maps:
        return Maps(tuple(view[images] for view in self.value))

    def window(self, views: slice) -> Maps:
        return Maps(self.value[views])

    def of(self, view: int) -> UInt8[Tensor, "b _ _"]:
        return self.value[view]


@dataclass(frozen=True)
class OwnMaps:
    """The class maps of b pictures to be scored, each uint8 (h, w) of its picture's own size, whatever the view's.

    ``seen``: where each view's pixels come from; (): from the whole picture, without padding.
    """

    value: tuple[UInt8[Tensor, "_ _"], ...]
    seen: tuple[Geometry, ...] = ()

    def __len__(self) -> int:
        return len(self.value)

    def to(self, device: torch.device) -> OwnMaps:
        return OwnMaps(tuple(each.to(device, non_blocking=True) for each in self.value), self.seen)

    def pin_memory(self) -> OwnMaps:
        """In memory from which a GPU copies by itself; DataLoader calls this."""
        return OwnMaps(tuple(each.pin_memory() for each in self.value), self.seen)

    def part(self, images: slice) -> OwnMaps:
        return OwnMaps(self.value[images], self.seen[images])

    def window(self, views: slice) -> OwnMaps:  # noqa: ARG002
        return self

    def of(self, view: int) -> tuple[tuple[UInt8[Tensor, "_ _"], Geometry | None], ...]:  # noqa: ARG002
        return tuple(zip(self.value, self.seen or (None,) * len(self), strict=True))


@dataclass(frozen=True)
class OwnObjects:
    """The objects of b pictures to be scored, in pixels of the pictures, each with where its view's pixels come from,
    so that what is found in the view leads back."""

    value: tuple[tuple[Objects, Geometry], ...]

    def __len__(self) -> int:
        return len(self.value)

    def to(self, device: torch.device) -> OwnObjects:  # noqa: ARG002
        return self

    def part(self, images: slice) -> OwnObjects:
        return OwnObjects(self.value[images])

    def window(self, views: slice) -> OwnObjects:  # noqa: ARG002
        return self

    def of(self, view: int) -> tuple[tuple[Objects, Geometry], ...]:  # noqa: ARG002
        return self.value
