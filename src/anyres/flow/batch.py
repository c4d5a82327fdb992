"""Images on their way through a model, as one or several views, with what they are to be answered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from anyres.flow.record import Geometry, Record


@runtime_checkable
class Targets(Protocol):
    """What the b images of a batch are to be answered with, for every view."""

    def __len__(self) -> int:
        """The number of images, b."""
        ...

    def to(self, device: torch.device) -> Targets: ...

    def part(self, images: slice) -> Targets:
        """Of some images."""
        ...

    def window(self, views: slice) -> Targets:
        """Of some views."""
        ...

    def of(self, view: int) -> Any:
        """Of one view: what its loss takes."""
        ...


@dataclass(frozen=True)
class Labels:
    """Targets that are tensors: class indices int64 (b,), classes bool or float (b, k), numbers float (b,).

    ``per_view``: ``value`` has one entry per view in front, (v, b, ...), as views that were mixed by themselves have.
    """

    value: Shaped[Tensor, ...]
    per_view: bool = False

    def __len__(self) -> int:
        return self.value.shape[1 if self.per_view else 0]

    def to(self, device: torch.device) -> Labels:
        return replace(self, value=self.value.to(device, non_blocking=True))

    def pin_memory(self) -> Labels:
        """In memory from which a GPU copies by itself; DataLoader calls this."""
        return replace(self, value=self.value.pin_memory())

    def part(self, images: slice) -> Labels:
        return replace(self, value=self.value[:, images] if self.per_view else self.value[images])

    def window(self, views: slice) -> Labels:
        return replace(self, value=self.value[views]) if self.per_view else self

    def of(self, view: int) -> Tensor:
        return self.value[view] if self.per_view else self.value


@runtime_checkable
class TargetReader(Protocol):
    """What a task tells the loader's processes of its targets; it is sent to them, so it has to be picklable."""

    def read(self, record: Record) -> Any:
        """The target of an image. Raises UserError for one that cannot be read."""
        ...

    def view(self, target: Any, geometry: Geometry) -> Any:
        """The target of one view; whole-image tasks return it as it is."""
        ...

    def collate(self, targets: Sequence[Sequence[Any]]) -> Targets:
        """``targets[image][view]`` -> the batch's."""
        ...


@dataclass(frozen=True)
class Batch:
    """The same b images as one or several views, largest first.

    ``views[i]``: uint8 (b, c, H_i, W_i) as loaded, float once normalized. ``targets``: what the views are to be
    answered with. ``index``: int64 (b,) positions in the dataset. ``notes``: what had to be done to an image to read
    it, as (image name, sentence). ``draw``: int64 (b,) how often the image came before in its epoch; None: never.
    ``geometry[image][view]``: where the view's pixels come from; () unless the loader was asked for it.
    """

    views: tuple[Shaped[Tensor, "b c _ _"], ...]
    targets: Targets
    index: Int64[Tensor, " b"]
    notes: tuple[tuple[str, str], ...] = ()
    draw: Int64[Tensor, " b"] | None = None
    geometry: tuple[tuple[Geometry, ...], ...] = ()

    def window(self, seen: range) -> Batch:
        """The batch with the views that a step sees."""
        views = slice(seen.start, seen.stop)
        return replace(self, views=self.views[views], targets=self.targets.window(views))


def seen_views(step: int, views: int, per_step: int | None) -> range:
    """Which of R ``views`` a step sees: all, or s of them from step mod (R - s + 1) on (ResFormer's ``iter`` mode)."""
    if per_step is None:
        return range(views)
    start = step % (views - per_step + 1)
    return range(start, start + per_step)
