"""The nouns that travel between rooms: Size, Record, Geometry, Targets, Batch, Metric, Estimate, SizeResult.

A leaf but for the users' error it raises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from anyres.config import UserError, printable

MOST_SIDE = 2**15
"""Pixels of a side: beyond it no library here decodes, and no machine holds a batch."""
MOST_SIZES = 1000
"""That are named at once."""


class Size(NamedTuple):
    """Height and width of an image in pixels; written ``HxW``, or ``S`` for a square."""

    height: int
    width: int

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str | int) -> Size:
        """``"320x192"`` (height x width) or ``"224"`` -> Size. Raises UserError for anything else."""
        match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", str(text).strip(), re.ASCII)
        if not match or not all(int(g) for g in match.groups() if g):
            raise UserError(
                f"size {printable(repr(text), 80)} is neither a side such as 224 nor HEIGHTxWIDTH such as 320x192"
            )
        height = int(match[1])
        size = cls(height, int(match[2] or height))
        if max(size) > MOST_SIDE:
            raise UserError(f"size {printable(str(text), 40)} is beyond {MOST_SIDE} px a side: give a smaller one")
        return size


@runtime_checkable
class Stored(Protocol):
    """The bytes of one image file within something larger: a shard, a table, a library's array."""

    def read(self) -> bytes:
        """The bytes; raises anything when they cannot be had."""
        ...


@dataclass(frozen=True)
class Record:
    """One image before decoding: where its bytes are, and its class index (-1: no label); where images have several
    labels, the indices of its classes, ascending; where labels are no classes, the label as it is written."""

    source: Path | bytes | Stored
    target: int | tuple[int, ...] | str
    name: str  # what a message calls it: the path below the root, or the row of a table


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of one view come from, so that boxes and masks can follow the image.

    ``source``: size of the image in pixels. ``crop``: (top, left, height, width) in pixels of the image, the part that
    is resized to ``size``, the view; it may reach beyond the image where the view is padded. ``flip``: mirrored left
    to right afterwards. ``affine``: what colour-preserving distortions (rotation, shear, translation) did after that,
    as the 2 x 3 matrix from pixels of the undistorted view to pixels of the view; None: nothing.
    """

    source: Size
    crop: tuple[float, float, float, float]
    size: Size
    flip: bool = False
    affine: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


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


@dataclass(frozen=True)
class Metric:
    """How good, as a number: ``key`` in files, ``name`` for people.

    ``unit`` is what follows a value: with ``%`` values are shares in [0, 1], shown times 100. ``over`` and ``interval``
    say in words what it is a mean of and how its interval is worked out, where that is not plain.
    """

    key: str
    name: str
    unit: str = "%"
    higher_is_better: bool = True
    over: str = ""
    interval: str = ""

    @property
    def scale(self) -> float:
        """What a value is multiplied by when it is shown."""
        return 100.0 if self.unit == "%" else 1.0

    def text(self, value: float, digits: int | None = None) -> str:
        """``76.4 %``; a number with another unit has three significant digits, if ``digits`` does not say."""
        shown = self.scale * value
        number = f"{shown:.{digits}f}" if digits is not None else f"{shown:.1f}" if self.unit == "%" else f"{shown:.3g}"
        return f"{number} {self.unit}".rstrip()


class Estimate(NamedTuple):
    """A measured value and its 95 % interval (NaN where none was worked out)."""

    value: float
    low: float = math.nan
    high: float = math.nan


DISTURBED = 1.5
"""Largest over smallest median of the rounds, beyond which a timing says little."""


def is_disturbed(rounds: Sequence[float]) -> bool:
    """Whether the rounds of one timing (their medians, as times or as rates) differ by more than ``DISTURBED`` times.

    Something else then ran on the machine during some of them.
    """
    return max(rounds) > DISTURBED * min(rounds)


@dataclass(frozen=True)
class Cost:
    """What one image costs a model at one size. NaN: not measured."""

    latency_ms: float  # median time of one batch of one image
    images_per_s: float  # throughput in batches of several images
    macs: int  # multiply-accumulates of one image
    latency_low_ms: float = math.nan  # smallest median of a round
    latency_high_ms: float = math.nan  # largest median of a round
    disturbed: bool = False  # the rounds of one of the two timings differ too much: see ``is_disturbed``


@dataclass(frozen=True)
class SizeResult:
    """One model at one size: how good, how sure, how costly.

    ``metrics``: by the ``key`` of each of ``described``, of which the first is the headline. ``n``: images scored.
    """

    model: str
    size: Size
    metrics: Mapping[str, Estimate]
    described: tuple[Metric, ...]
    n: int
    cost: Cost

    @property
    def headline(self) -> Metric:
        """The metric that decides."""
        return self.described[0]

    @property
    def best(self) -> Estimate:
        """The headline's value."""
        return self.metrics[self.headline.key]

    def row(self) -> dict[str, str | int | float | bool]:
        """Plain values under the names that files use: ``top1``, ``top1_low``, ``latency_ms``, ..."""
        head, *others = self.described
        values: dict[str, str | int | float | bool] = {
            "model": self.model,
            "height": self.size.height,
            "width": self.size.width,
            head.key: self.best.value,
            "n": self.n,
            "latency_ms": self.cost.latency_ms,
            "macs": self.cost.macs,
            f"{head.key}_low": self.best.low,
            f"{head.key}_high": self.best.high,
        }
        for metric in others:
            estimate = self.metrics[metric.key]
            values[metric.key] = estimate.value
            if not math.isnan(estimate.low):
                values |= {f"{metric.key}_low": estimate.low, f"{metric.key}_high": estimate.high}
        return values | {
            "images_per_s": self.cost.images_per_s,
            "latency_low_ms": self.cost.latency_low_ms,
            "latency_high_ms": self.cost.latency_high_ms,
            "disturbed": self.cost.disturbed,
        }


def pick_device() -> torch.device:
    """The best device of this machine: CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` has bf16 matrix instructions (CUDA 8.0 and later, AVX512-BF16, AMX, Arm BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def parse_sizes(texts: Sequence[str]) -> tuple[Size, ...]:
    """``["64:320:32", "320x192"]`` -> sizes; a range START:STOP:STEP includes STOP. Raises UserError."""
    sizes: list[Size] = []
    for text in (part for word in texts for part in str(word).split(",") if part):
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18}):(\d{1,18})", text, re.ASCII)
        if match:
            start, stop, step = map(int, match.groups())
            if not (0 < start <= stop and step > 0):
                raise UserError(
                    f"size range {text!r} is empty: write START:STOP:STEP with START <= STOP, as in 64:320:32"
                )
            if stop > MOST_SIDE or (stop - start) // step >= MOST_SIZES:
                raise UserError(
                    f"size range {text!r} is too long: at most {MOST_SIZES} sizes, none beyond {MOST_SIDE} px a side"
                )
            sizes += [Size(side, side) for side in range(start, stop + 1, step)]
        else:
            sizes.append(Size.parse(text))
    if len(sizes) > MOST_SIZES:
        raise UserError(f"{len(sizes)} sizes are given: at most {MOST_SIZES}")
    if not sizes:
        raise UserError("no size is given: write one or more, as 224, 320x192 or 64:320:32")
    return tuple(dict.fromkeys(sizes))
