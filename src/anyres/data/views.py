"""The sizes at which one image is seen, in training and in evaluation. Sizes are decided here and only here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import UInt8
from torch import Tensor

from anyres.config import UserError
from anyres.data.augment import preserve_rng_state, resize, seed_all, view_maker
from anyres.data.augment_config import AugmentConfig
from anyres.data.geometry import View, cut, resized, whole
from anyres.data.views_config import ViewsConfig
from anyres.flow import Geometry, Size

LONGEST = 8  # evaluation cuts an image that is more than so many times as elongated as the view, before resizing


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
    w_kept, h_kept = min(w, max(1, LONGEST * h * wide // tall)), min(h, max(1, LONGEST * w * tall // wide))
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
