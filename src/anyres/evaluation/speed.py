"""How costly: multiply-accumulates counted, and time measured, for a model at an image size."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anyres.evaluation.evaluator import evaluating
from anyres.flow import Cost, Size

WARM_UP = 3  # runs that are never counted
FEWEST_RUNS = 5  # counted runs, however small the budget


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of one batch, in milliseconds, over ``runs`` counted runs; ``batch`` images each."""

    median_ms: float
    p10: float
    p90: float
    runs: int
    batch: int

    @property
    def images_per_s(self) -> float:
        """Throughput at this batch size, from the median."""
        return 1000 * self.batch / self.median_ms


def macs(model: nn.Module, size: Size) -> int:
    """Multiply-accumulates of one image (1, 3, H, W): convolutions, matrix products and attention.

    Counted by running a float32 copy on the CPU with the mathematical twin of attention, as its fused kernels are
    not all known to torch's counter. Element-wise work (norms, activations, resampling) is not counted, as usual.
    """
    twin = copy.deepcopy(model).to("cpu", torch.float32).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.TransformerEncoderLayer's fused kernel hides its products
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            twin(torch.zeros(1, 3, size.height, size.width))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def latency(
    model: nn.Module,
    size: Size,
    device: torch.device,
    batch: int = 1,
    budget_s: float = 1.0,
    autocast: torch.dtype | None = None,
) -> Latency:
    """Time ``model`` on (batch, 3, H, W) random pixels already on ``device``, for about ``budget_s`` seconds.

    Warm-up runs are left out, the device is synchronised around every run, and the model's mode is restored.
    """
    pixels = torch.randn(batch, 3, size.height, size.width, device=device)
    times: list[float] = []
    with evaluating(model), torch.inference_mode(), torch.autocast(device.type, autocast, autocast is not None):
        for _ in range(WARM_UP):
            model(pixels)
        end = time.perf_counter() + budget_s
        while len(times) < FEWEST_RUNS or time.perf_counter() < end:
            _synchronise(device)
            start = time.perf_counter()
            model(pixels)
            _synchronise(device)
            times.append(1000 * (time.perf_counter() - start))
    p10, median, p90 = (float(q) for q in np.percentile(times, (10, 50, 90)))
    return Latency(median, p10, p90, len(times), batch)


def _synchronise(device: torch.device) -> None:
    """Wait until ``device`` has done all it was asked to; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure_costs(
    model: nn.Module,
    sizes: Sequence[Size],
    device: torch.device,
    autocast: torch.dtype | None = None,
    budget_s: float = 1.0,
    rounds: int = 5,
) -> dict[Size, Cost]:
    """The cost of ``model`` at each of ``sizes``."""
    costs = {}
    for size in sizes:
        single = latency(model, size, device, 1, budget_s, autocast)
        several = latency(model, size, device, 8, budget_s, autocast)
        costs[size] = Cost(single.median_ms, several.images_per_s, macs(model, size))
    return costs
