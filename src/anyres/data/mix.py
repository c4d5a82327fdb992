"""On the device: bytes -> normalised floats, and mixup or CutMix with one draw for all views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from anyres.data.augment import mix_seed
from anyres.data.mix_config import MixConfig
from anyres.flow import Batch, send

IN_CACHE = 1 << 20
"""Numbers that a processor's cache holds; fewer at a time would cost more, as the cores meet after each operation."""
_MIX = 3  # a stage of the seed: 1 and 2 are anyres.data.erasing's
Views = tuple[Float[Tensor, "b c _ _"], ...]


def normalize(batch: Batch, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Batch:
    """uint8 views -> float32 (value / 255 - mean) / std per channel, on ``device``, and there the targets too."""
    s = torch.tensor(std, dtype=torch.float64)
    scale = send((1 / (255 * s)).float().view(-1, 1, 1), device)
    shift = send((-torch.tensor(mean, dtype=torch.float64) / s).float().view(-1, 1, 1), device)
    views = tuple(_scaled(send(v, device), scale, shift) for v in batch.views)
    return replace(batch, views=views, targets=batch.targets.to(device))


def _scaled(view: Shaped[Tensor, "b c _ _"], scale: Tensor, shift: Tensor) -> Float32[Tensor, "b c _ _"]:
    """view * scale + shift, rounded twice; on a CPU a few images at a time, which stay in its cache meanwhile."""
    if view.device.type != "cpu":
        return view.float().mul_(scale).add_(shift)
    made = torch.empty_like(view, dtype=torch.float32)
    rows = _rows(view)
    for i in range(0, len(view), rows):
        made[i : i + rows].copy_(view[i : i + rows]).mul_(scale).add_(shift)
    return made


def _rows(view: Shaped[Tensor, "b c _ _"]) -> int:
    """So many images of a view are worked on at a time: all of them, or on a CPU what its cache holds."""
    return len(view) if view.device.type != "cpu" else max(1, IN_CACHE // max(1, view[:1].numel()))


def mix_rng(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """The generator of one step's mix: ranks draw differently, and a resumed run draws the same."""
    return np.random.default_rng(mix_seed(seed, step, rank, _MIX))


def mix(
    views: Views,
    target: Int64[Tensor, " b"] | Shaped[Tensor, "b k"],
    classes: int,
    how: MixConfig,
    rng: np.random.Generator,
) -> tuple[Views, Float32[Tensor, "*v b k"]]:
    """Mix each image with its opposite in the batch (first with last), in place: the views and the soft target (b, k).

    Mixup: lam x + (1 - lam) x'. CutMix: a box of x' in x, drawn at the largest view and scaled to the others with
    truncation, lam being the share left of the largest view. An odd batch's middle image meets itself.
    With ``share`` off each view has its own draw and the target is (v, b, k). The target of a multi-label set, zeros
    and ones, is mixed and smoothed class by class.
    """
    hot = (
        smooth_each(target.float(), how.smoothing)
        if target.ndim == 2
        else smooth_one_hot(target, classes, how.smoothing)
    )
    if how.share or len(views) == 1:
        mixed, lam = _mix_once(views, how, rng)
        soft = _blend(hot, lam)
        return mixed, soft if how.share else soft[None]
    each = [_mix_once((view,), how, rng) for view in views]
    return tuple(mixed[0] for mixed, _ in each), torch.stack([_blend(hot, lam) for _, lam in each])


def smooth_one_hot(target: Int64[Tensor, " b"], classes: int, smoothing: float) -> Float32[Tensor, "b k"]:
    """1 - s + s/k on the label, s/k elsewhere."""
    off = smoothing / classes
    hot = torch.full((len(target), classes), off, dtype=torch.float32, device=target.device)
    return hot.scatter_(1, target[:, None], 1 - smoothing + off)


def smooth_each(target: Float32[Tensor, "b k"], smoothing: float) -> Float32[Tensor, "b k"]:
    """1 - s/2 for a class that an image has, s/2 for one that it has not."""
    return target * (1 - smoothing) + smoothing / 2


def _blend(x: Tensor, lam: float) -> Tensor:
    return x if lam == 1 else x * lam + x.flip(0) * (1 - lam)


def _blend_views(view: Float[Tensor, "b c h w"], lam: float) -> None:
    """Each image becomes lam x itself + (1 - lam) x its opposite, in place; on a CPU a few pairs at a time."""
    if lam == 1:
        return
    pairs, rows = len(view) // 2, -(-_rows(view) // 4)  # front, back, and a copy of each
    for i in range(0, pairs, rows):
        count = min(rows, pairs - i)
        front, back = view[i : i + count], view[len(view) - i - count : len(view) - i]
        to_back = front.flip(0).mul_(1 - lam)
        front.mul_(lam).add_(back.flip(0).mul_(1 - lam))
        back.mul_(lam).add_(to_back)
    if len(view) % 2:  # the middle one meets itself
        middle = view[pairs]
        middle.copy_(middle * lam + middle * (1 - lam))


def _mix_once(views: Views, how: MixConfig, rng: np.random.Generator) -> tuple[Views, float]:
    """The views after one draw, and the share of each image's own label."""
    if not (how.mixup or how.cutmix) or rng.random() >= how.prob:
        return views, 1.0
    cut = rng.random() < how.switch if how.mixup and how.cutmix else how.cutmix > 0
    alpha = how.cutmix if cut else how.mixup
    lam = float(rng.beta(alpha, alpha))
    if not cut:
        for view in views:
            _blend_views(view, lam)
        return views, lam
    height, width = views[0].shape[-2:]
    box = draw_box(height, width, lam, rng)
    top, bottom, left, right = box
    for view in views:
        _paste(view, box, height, width)
    return views, 1 - (bottom - top) * (right - left) / (height * width)


def draw_box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """CutMix's (top, bottom, left, right): sides of sqrt(1 - lam), a uniform centre, clipped at the borders."""
    side = float(np.sqrt(1 - lam))
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return max(0, y - half_h), min(height, y + half_h), max(0, x - half_w), min(width, x + half_w)


def _paste(view: Tensor, box: tuple[int, int, int, int], height: int, width: int) -> None:
    """The opposite image's box into each image; the box was drawn at (height, width), each axis scales by itself."""
    h, w = view.shape[-2:]
    top, bottom, left, right = box[0] * h // height, box[1] * h // height, box[2] * w // width, box[3] * w // width
    inside = view[:, :, top:bottom, left:right]
    inside.copy_(inside.flip(0))
