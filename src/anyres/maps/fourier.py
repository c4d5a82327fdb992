"""How much of each frequency a layer's maps hold: relative log amplitudes (ResTv2, section 4), for any family.

Of each map F = log(|FFT₂| + 1e-6), the zero frequency moved to the center; the mean of F over images and channels; its
diagonal from the center on, less the first value. Means are kept as images stream by, so memory does not grow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from anyres.maps.attention import layers_of, recorded, stride_at
from anyres.maps.readers import Reader, resolved
from anyres.models.contract import Backbone
from anyres.ops.patch import grid_of, to_maps

EPS = 1e-6
FEATURES, ATTENTION, SUM = "features", "attention", "sum"
"""What maps are of: a layer's output; the weighted values of its attention; these with what the family adds."""


def log_amplitude(maps: Float[Tensor, "b c h w"]) -> Float64[Tensor, "h w"]:
    """log(|FFT₂| + 1e-6), the zero frequency at (h // 2, w // 2); the sum over images, the mean over channels."""
    amplitude = torch.fft.fft2(maps.to(torch.promote_types(maps.dtype, torch.float32))).abs()
    logs = (amplitude + EPS).log().mean(1).sum(0, dtype=torch.float64)
    shifted: Tensor = torch.fft.fftshift(logs)
    return shifted


def diagonal(mean: Float64[Tensor, "h w"]) -> Float64[Tensor, " n"]:
    """From the center towards the last corner, less its first value; n = the lesser of ⌈h / 2⌉ and ⌈w / 2⌉.

    On a map that is not square the steps along the longer side are longer, so that both ends are reached.
    """
    rows, columns = mean.shape
    down, across = rows - rows // 2, columns - columns // 2
    n = min(down, across)
    way = torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
    y, x = ((way * (side - 1)).round().long() for side in (down, across))
    values = mean.cpu()[rows // 2 + y, columns // 2 + x]
    return values - values[0]


@dataclass
class Mean:
    """The running mean of one layer's amplitudes."""

    total: Float64[Tensor, "h w"]
    images: int = 0

    def add(self, maps: Float[Tensor, "b c h w"]) -> None:
        """Count some more images."""
        self.total += log_amplitude(maps)
        self.images += len(maps)


@dataclass(frozen=True)
class Spectrum:
    """A layer's relative log amplitudes: ``values`` from frequency 0 (its value is 0) to the highest."""

    part: str
    layer: int
    module: str
    grid: tuple[int, int]
    images: int
    values: tuple[float, ...]

    @property
    def frequencies(self) -> list[float]:
        """Of the values, in multiples of π, evenly from 0 to 1 as the paper draws them."""
        last = max(len(self.values) - 1, 1)
        return [i / last for i in range(len(self.values))]


@dataclass
class Fourier:
    """Sees a model's maps in batches of one size, and gives their spectra. The model's numbers stay as they are."""

    model: Backbone
    means: dict[tuple[str, int, str], Mean] = field(default_factory=dict)

    @torch.no_grad()
    def see(self, x: Float[Tensor, "b k h w"]) -> None:
        """Count a batch of normalized images. Raises UserError where the model gives no intermediate features."""
        reader = resolved(self.model)
        blocks = layers_of(self.model, reader) if reader is not None and reader.positions else {}
        with recorded(module for modules in blocks.values() for module in modules) as seen:
            features = self.model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
        assert isinstance(features, list)
        for layer, (maps, info) in enumerate(zip(features, self.model.feature_info, strict=True)):
            self._add((FEATURES, layer, str(info["module"])), maps)
        if reader is not None:
            for layer, (block, modules) in enumerate(blocks.items()):
                for part, maps in _attended(
                    reader, modules, seen, (x.shape[-2], x.shape[-1]), stride_at(self.model, block)
                ):
                    self._add((part, layer, block), maps)

    def spectra(self) -> list[Spectrum]:
        """Of every layer: its features, and where queries are positions what its attention gives; part by part."""
        parts = list(dict.fromkeys(part for part, _, _ in self.means))
        return [
            Spectrum(
                part,
                layer,
                module,
                (mean.total.shape[0], mean.total.shape[1]),
                mean.images,
                tuple(diagonal(mean.total / mean.images).tolist()),
            )
            for (part, layer, module), mean in sorted(self.means.items(), key=lambda item: parts.index(item[0][0]))
        ]

    def _add(self, key: tuple[str, int, str], maps: Float[Tensor, "b c h w"]) -> None:
        if key not in self.means:
            self.means[key] = Mean(torch.zeros(maps.shape[2:], dtype=torch.float64, device=maps.device))
        self.means[key].add(maps)


def _attended(
    reader: Reader,
    modules: list[nn.Module],
    seen: dict[nn.Module, tuple[tuple[Any, ...], Any]],
    size: tuple[int, int],
    stride: int,
) -> Iterator[tuple[str, Float[Tensor, "b c h w"]]]:
    """What attention gives at each position of the image, class tokens left out, and what the family adds to it."""
    grid = grid_of(size, stride)
    count = math.prod(grid)
    twins = [reader.twin(module, *seen[module][0]) for module in modules]
    attended = torch.cat([twin.attended[:, -count:] for twin in twins], dim=2)
    yield ATTENTION, to_maps(attended, grid)
    added = [twin.added[:, -count:] for twin in twins if twin.added is not None]
    if added:
        extra = torch.cat(added, dim=2)
        yield reader.added, to_maps(extra, grid)
        yield SUM, to_maps(attended + extra, grid)
