"""Pictures with one informative corner, small models trained on them, and how much of a map lies there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anyres.maps.draw import over_pixels
from anyres.maps.look import Method, look_at
from anyres.models.contract import Backbone

CLASSES = 4
CONTRAST, NOISE = 1.5, 0.7
STEEP = 2e-3  # learning rate


class Pictures(NamedTuple):
    """Noise, and in one corner, a quarter of the side, the stripes or checks that make the class."""

    x: Tensor  # float (n, 3, side, side), normalized
    y: Tensor  # int64 (n,)
    corner: Tensor  # bool (n, side, side)


def pictures(count: int, side: int, seed: int) -> Pictures:
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=draw)
    at = torch.randint(2, (count, 2), generator=draw)
    x = NOISE * torch.randn(count, 3, side, side, generator=draw)
    small = side // 4
    rows, columns = torch.meshgrid(torch.arange(small), torch.arange(small), indexing="ij")
    wide = max(2, small // 4)  # of a stripe
    patterns = [rows // wide, columns // wide, rows // wide + columns // wide, (rows + columns) // wide]
    signs = torch.stack([1.0 - 2.0 * (pattern % 2) for pattern in patterns])
    corner = torch.zeros(count, side, side, dtype=torch.bool)
    for i in range(count):
        top, left = (int(place) * (side - small) for place in at[i])
        window = (slice(top, top + small), slice(left, left + small))
        corner[i][window] = True
        x[i, :, window[0], window[1]] += CONTRAST * signs[y[i]]
    return Pictures(x, y, corner)


def train(model: Backbone, side: int, steps: int, batch: int = 64, seconds: float = 60) -> Backbone:
    """The model after so many steps, or seconds of the processor, on pictures each seen once; in evaluation mode."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=STEEP, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, STEEP, total_steps=steps, pct_start=0.2)
    end = time.process_time() + seconds
    for step in range(steps):
        seen = pictures(batch, side, seed=1000 + step)
        loss = F.cross_entropy(model(seen.x), seen.y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if time.process_time() > end:
            break
    return model.eval()


@dataclass(frozen=True)
class Share:
    """Of a map's mass in the positions that touch the informative corner, and these positions' share of the area."""

    share: float
    area: float
    highest: float
    """How often the map's highest value lies there."""


def share_in_corner(model: Backbone, seen: Pictures, method: Method) -> Share:
    """The mean over pictures; of several heads, of their mean."""
    found = [look_at(model, x[None], method) for x in seen.x]
    return share_of([each.maps.mean(0) for each in found], found[0].stride, seen)


def share_of(maps: Sequence[Tensor], stride: int, seen: Pictures) -> Share:
    """Of maps, one (rows, columns) for each picture."""
    shares, areas, hits = [], [], []
    for found, corner in zip(maps, seen.corner, strict=True):
        size = (corner.shape[0], corner.shape[1])
        positions = F.max_pool2d(corner[None].float(), stride, ceil_mode=True)  # those that touch it
        inside = over_pixels(positions, stride, size)[0].bool()
        wide = over_pixels(found[None], stride, size)[0]
        shares.append(float((wide * inside).sum() / wide.sum().clamp_min(1e-12)))
        areas.append(float(inside.float().mean()))
        hits.append(bool(inside.flatten()[wide.argmax()]))
    return Share(sum(shares) / len(shares), sum(areas) / len(areas), sum(hits) / len(hits))
