"""The sizes at which one image is seen, in training and in evaluation. Sizes are decided here and only here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import UInt8
from torch import Tensor

from anyres.config import UserError, config
from anyres.data.augment import AugmentConfig, preserve_rng_state, resize, seed_all, view_maker
from anyres.data.geometry import View, cut, resized, whole
from anyres.flow import MOST_SIZES, Geometry, Size

_SIZES: tuple[str | int, ...] = ("224",)
_LONGEST = 8  # evaluation cuts an image that is more than so many times as elongated as the view, before resizing


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


@lru_cache(maxsize=8)
def _plan(views: ViewsConfig, how: AugmentConfig) -> tuple[tuple[Size, AugmentConfig], ...]:
    return views.plan(how)


def make_views(
    image: UInt8[Tensor, "c h w"], how: AugmentConfig, views: ViewsConfig, seed: int, epoch: int, index: int
) -> tuple[UInt8[Tensor, "c _ _"], ...]:
    """The training views of one image, uint8 (c, H_i, W_i), largest first; a function of (seed, epoch, index)."""
    with preserve_rng_state():
        return tuple(view.pixels for view in draw_views(whole(image), how, views, seed, epoch, index))


def draw_views(
    image: View,
    how: AugmentConfig,
    views: ViewsConfig,
    seed: int,
    epoch: int,
    index: int,
    seen: range | None = None,
) -> tuple[View, ...]:
    """``make_views`` with each view's geometry, but the global generators are left as the last draw leaves them:
    within ``preserve_rng_state``. ``image``: the whole image, of which the views' geometry counts on.

    Views whose place is not in ``seen`` (None: all are) stay black, and their geometry is the image's; those that are,
    are the same whatever it says.

    Shared augmentation: the smaller views are resized from the largest one by bicubic interpolation in float without
    antialiasing, which is what ResFormer's published runs did (torchvision 0.8); unlike there they are then rounded
    and clipped to uint8, an error of half a gray level, so that every view leaves the loader as bytes.
    """
    if not views.share:
        made = []
        for i, (size, own) in enumerate(_plan(views, how)):
            if seen is not None and i not in seen:
                made.append(_black(image, size))
                continue
            make = view_maker(size, own)
            seed_all(seed, epoch, index, i)
            made.append(make(image))
        return tuple(made)
    sizes = views.parsed
    make = view_maker(sizes[0], how)
    seed_all(seed, epoch, index, 0)
    largest = make(image)
    smaller = enumerate(sizes[1:], 1)
    return (largest, *(shrink(largest, s) if seen is None or i in seen else _black(image, s) for i, s in smaller))


def _black(image: View, size: Size) -> View:
    pixels = torch.zeros(1, dtype=torch.uint8).expand(len(image.pixels), *size)
    return View(pixels, resized(image.geometry, size))


def shrink(view: View, size: Size) -> View:
    """A smaller view of a shared augmentation."""
    batch = view.pixels[None].float()
    made = torch.nn.functional.interpolate(batch, size=list(size), mode="bicubic", antialias=False)
    return View(made[0].round_().clamp_(0, 255).to(torch.uint8), resized(view.geometry, size))


@dataclass(frozen=True)
class EvalPlan:
    """What evaluation does with an image: cut the window ``kept`` (top, left, height, width) out of it, resize that to
    ``covered``, and cut the view out at ``at`` (top, left)."""

    kept: tuple[int, int, int, int]
    covered: Size
    at: tuple[int, int]

    @property
    def enlarges(self) -> bool:
        """Whether the view needs more pixels than the image has."""
        return self.covered.height > self.kept[2] or self.covered.width > self.kept[3]


def eval_plan(image: Size, size: Size, crop: float = 0.875, warp: bool = False) -> EvalPlan:
    """How an image of ``image`` pixels becomes the view ``size``: see ``eval_view``. Raises UserError."""
    if not 0 < crop <= 1:
        raise UserError(f"crop {crop} is the share of a side that is kept: it must be above 0 and at most 1, as 0.875")
    h, w = image
    if warp:
        return EvalPlan((0, 0, h, w), size, (0, 0))
    tall, wide = int(size.height / crop), int(size.width / crop)
    w_kept, h_kept = min(w, max(1, _LONGEST * h * wide // tall)), min(h, max(1, _LONGEST * w * tall // wide))
    kept = ((h - h_kept) // 2, (w - w_kept) // 2, h_kept, w_kept)
    h, w = h_kept, w_kept
    if tall * w >= wide * h:  # as wide as the view or wider: the height decides
        covered = Size(tall, max(wide, int(tall * w / h)))
    else:
        covered = Size(max(tall, int(wide * h / w)), wide)
    # rounded as torchvision's center_crop does
    at = round((covered.height - size.height) / 2.0), round((covered.width - size.width) / 2.0)
    return EvalPlan(kept, covered, at)


def eval_view(
    image: UInt8[Tensor, "c h w"], size: Size, crop: float = 0.875, warp: bool = False, interpolation: str = "bicubic"
) -> UInt8[Tensor, "c H W"]:
    """The image resized to cover int(H / crop) x int(W / crop), then its center H x W; antialiased.

    For a square of side S that is torchvision's Resize(int(S / crop)) and CenterCrop(S): within 2 gray levels of
    Pillow's pixels, 0.005 on average, in a fifth of its time. ``warp``: resized to H x W whatever its shape.
    An image more than 8 times as elongated as the view loses its ends first, for memory's sake.
    ``interpolation``: ``bicubic`` or ``bilinear``. ``eval_geometry`` says where the pixels come from. Raises UserError
    when ``crop`` is not in (0, 1].
    """
    plan = eval_plan(Size(*image.shape[-2:]), size, crop, warp)
    top, left, height, width = plan.kept
    covered = resize(image[:, top : top + height, left : left + width], plan.covered, interpolation)
    top, left = plan.at
    return covered[:, top : top + size.height, left : left + size.width].contiguous()


def eval_geometry(image: Geometry, size: Size, crop: float = 0.875, warp: bool = False) -> Geometry:
    """Where the pixels of ``eval_view`` come from; ``image``: the decoded image's own geometry."""
    plan = eval_plan(image.size, size, crop, warp)
    top, left, height, width = plan.kept
    return cut(resized(cut(image, top, left, Size(height, width)), plan.covered), *plan.at, size)
