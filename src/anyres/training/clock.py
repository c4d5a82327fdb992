"""How fast a run goes: images per second, the share of time that data takes, memory, and what is still to come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import torch

from anyres.flow import Batch
from anyres.ops.processors import peak_memory, processors


class Clock:
    """Images per second and the share of time spent waiting for data, smoothed over recent steps; the memory held; how
    long ``steps`` steps will take, with all that comes between them."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self._began = self._started = self._lap = time.perf_counter()
        self._steps, self._made, self._device = steps, 0, device
        self._waited = 0.0
        self._rate = self._share = 0.0
        self._advised = False

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time it took counts as waiting."""
        before = time.perf_counter()
        batch = next(batches)
        self._waited = time.perf_counter() - before
        return batch

    def step(self, images: int) -> float:
        """Close a step of ``images`` images; returns its seconds."""
        now = time.perf_counter()
        took, self._started = now - self._started, now
        self._made += 1
        keep = 0.9 if self._rate else 0.0
        self._rate = keep * self._rate + (1 - keep) * images / took
        self._share = keep * self._share + (1 - keep) * self._waited / took
        return took

    def lap(self) -> float:
        """Seconds since the last lap, or since the start: all that came between, too."""
        now = time.perf_counter()
        took, self._lap = now - self._lap, now
        return took

    def restart(self) -> None:
        """Leave what came since the step (evaluation, checkpoint) out of the rate."""
        self._started = time.perf_counter()

    def numbers(self) -> dict[str, float]:
        """What a picture of the run's speed needs."""
        speed = {"speed/images_per_s": self._rate, "speed/data_share": self._share}
        return speed | {"speed/memory_gib": memory_gib(self._device)}

    def facts(self) -> str:
        left = (time.perf_counter() - self._began) / self._made * (self._steps - self._made)
        return (
            f"{self._rate:.0f} images/s  data {self._share:.0%}  {memory_gib(self._device):.1f} GiB  "
            f"ETA {timedelta(seconds=round(left))}"
        )

    def advice(self) -> str:
        """Once, when after 50 steps more than half of the time goes to waiting for data: what to do about it."""
        if self._advised or self._made < 50 or self._share <= 0.5:
            return ""
        self._advised = True
        return (
            f"{self._share:.0%} of the time goes to waiting for images: raise data.workers (there are "
            f"{processors()} processors), keep them decoded with data.cache_side, or decode less with data.dct=true"
        )


def memory_gib(device: torch.device) -> float:
    """The most that was allocated on ``device``; of a CPU, the most that this process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    return peak_memory() / 2**30
