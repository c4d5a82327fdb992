"""The sizes at which a training image is seen, as values; ``anyres.data.views`` makes the views. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from anyres.config import UserError, config
from anyres.data.augment_config import AugmentConfig
from anyres.flow import MOST_SIZES, Size

_SIZES: tuple[str | int, ...] = ("224",)


@config
class ViewGroup:
    """Several views of one size, cut and colored as ``augment`` says but for what is given here."""

    size: str | int  # as 224 or 320x192 (height x width), in pixels
    count: int = 1  # of views
    crop_scale: tuple[float, float] | None = None  # instead of augment's; null: augment's
    grayscale: float | None = None  # instead of augment's; null: augment's
    blur: float | None = None  # instead of augment's; null: augment's
    solarize: float | None = None  # instead of augment's; null: augment's

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", str(Size.parse(self.size)))
        if not 1 <= self.count <= MOST_SIZES:
            raise ValueError(f"views.groups: count {self.count} of the views at {self.size} must be 1 to {MOST_SIZES}")

    def augment(self, how: AugmentConfig) -> AugmentConfig:
        """``how`` with what this group gives. Raises ValueError when that cannot be."""
        given = {name: getattr(self, name) for name in ("crop_scale", "grayscale", "blur", "solarize")}
        return replace(how, **{name: value for name, value in given.items() if value is not None})


@config
class ViewsConfig:
    """The views of each training image, sorted so that the largest area comes first."""

    sizes: tuple[str | int, ...] = _SIZES  # as 224 or 320x192 (height x width), in pixels
    share: bool = False  # one augmentation at the largest size, from which the others are resized; else one for each
    # instead of sizes: groups of views each with its own crop scale and colors, as multi-crop has them; groups of one
    # size keep the order they are given in, so DINO's two global views come first
    groups: tuple[ViewGroup, ...] = ()

    def __post_init__(self) -> None:
        if not self.sizes:
            raise UserError("views.sizes is empty: give one size or more, as 128, 96, 64")
        groups = tuple(sorted(self.groups, key=lambda group: _by_area(Size.parse(group.size)), reverse=True))
        ordered = tuple(map(str, sorted(map(Size.parse, self.sizes), key=_by_area, reverse=True)))
        if groups:
            counted = tuple(str(group.size) for group in groups for _ in range(group.count))
            if self.sizes != _SIZES and ordered != counted:
                raise UserError(
                    f"views.sizes={list(self.sizes)} and views.groups both give sizes: leave one of them out"
                )
            if self.share:
                raise UserError(
                    "views.share=true resizes one view, and views.groups cuts each by itself: leave one out"
                )
            ordered = counted
        if len(ordered) > MOST_SIZES:
            raise UserError(f"{len(ordered)} views are too many: at most {MOST_SIZES}")
        object.__setattr__(self, "sizes", ordered)
        object.__setattr__(self, "groups", groups)

    @property
    def parsed(self) -> tuple[Size, ...]:
        """The sizes as numbers, largest first."""
        return tuple(map(Size.parse, self.sizes))

    @property
    def summary(self) -> str:
        """The sizes for a message: ``224, 160`` or ``2 x 224, 8 x 96``."""
        counts = {size: self.sizes.count(size) for size in self.sizes}
        return ", ".join(str(size) if count == 1 else f"{count} x {size}" for size, count in counts.items())

    def plan(self, how: AugmentConfig) -> tuple[tuple[Size, AugmentConfig], ...]:
        """Size and augmentation of each view, largest first. Raises ValueError when a group cannot have its own."""
        if not self.groups:
            return tuple((size, how) for size in self.parsed)
        return tuple((Size.parse(g.size), g.augment(how)) for g in self.groups for _ in range(g.count))


def _by_area(size: Size) -> tuple[int, int]:
    return size.height * size.width, size.height
