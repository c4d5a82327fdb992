"""Cost of a model at an image size: multiply-accumulates counted, and time measured in turn with other timings."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from anyres.evaluation.evaluator import evaluating
from anyres.flow import Cost, Size, is_disturbed
from anyres.ops.processors import processors

WARM_UP = 2  # calls before the first round; each later round begins with one that is not counted
FEWEST_CALLS = 2  # counted calls of a round, however small the budget
ROUNDS = 3  # of every timing, in turn
SPUN = 1024  # sides of the matrices that find out how busy the machine is: a product takes some milliseconds
THROUGHPUT_BATCH = 8  # images of one batch where images/s are measured

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Time of one call in milliseconds: the median of each round."""

    rounds_ms: tuple[float, ...]  # in the order they were measured

    @property
    def median_ms(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds_ms)

    @property
    def disturbed(self) -> bool:
        """Whether the rounds differ too much to say anything: see ``anyres.flow.is_disturbed``."""
        return is_disturbed(self.rounds_ms)


def time_in_turn(
    calls: Mapping[K, Callable[[], object]],
    device: torch.device,
    budget_s: float = 1.0,
    rounds: int = ROUNDS,
) -> dict[K, Timing]:
    """Time every call in each of ``rounds`` rounds, one after the other, so that all share what else the machine does.

    ``budget_s``: seconds for each call, over all rounds. Every round begins with another call, and each turn with one
    run that is not counted. The device is synchronised around every run.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    names = list(calls)
    found: dict[K, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        for name in (*names[first:], *names[:first]):
            found[name].append(1000 * _median_time(calls[name], device, budget_s / rounds))
    return {name: Timing(tuple(medians)) for name, medians in found.items()}


def _median_time(call: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Median seconds of a call over about ``budget_s`` seconds, after one that is not counted."""
    call()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < FEWEST_CALLS or time.perf_counter() < end:
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def share_of_others(budget_s: float = 1.0) -> float:
    """Share of the processors' time that other programs take while this process wants all of it, in [0, 1]; about 0 on
    a quiet machine. Multiplies matrices for ``budget_s`` seconds on the processors that PyTorch computes with."""
    threads = min(torch.get_num_threads(), processors())
    square = torch.ones(SPUN, SPUN)
    start, used = time.perf_counter(), time.process_time()
    while (took := time.perf_counter() - start) < budget_s:
        square @ square
    return min(1.0, max(0.0, 1 - (time.process_time() - used) / (threads * took)))


def measure_costs(
    model: nn.Module,
    sizes: Sequence[Size],
    device: torch.device,
    autocast: torch.dtype | None = None,
    budget_s: float = 1.0,
    rounds: int = ROUNDS,
    channels: int = 3,
) -> dict[Size, Cost]:
    """What ``model`` costs at each size: see ``measure_costs_of``."""
    found = measure_costs_of({"": model}, sizes, device, autocast, budget_s, rounds, channels)
    return {size: cost for (_, size), cost in found.items()}


def measure_costs_of(
    models: Mapping[str, nn.Module],
    sizes: Sequence[Size],
    device: torch.device,
    autocast: torch.dtype | None = None,
    budget_s: float = 1.0,
    rounds: int = ROUNDS,
    channels: int = 3,
) -> dict[tuple[str, Size], Cost]:
    """What each model costs at each size, all timed in turn in one window of ``rounds`` rounds (``time_in_turn``).

    Random pixels (b, channels, H, W) lie on ``device`` already. Two timings, with ``budget_s`` seconds each over all
    rounds: one image at a time (latency), and ``THROUGHPUT_BATCH`` at a time (images/s). ``autocast``: the dtype the
    models run in, None for float32. The models' modes are restored.
    """
    calls: dict[tuple[str, Size, int], Callable[[], object]] = {}
    for name, model in models.items():
        for size in dict.fromkeys(sizes):
            for batch in (1, THROUGHPUT_BATCH):
                pixels = torch.randn(batch, channels, size.height, size.width, device=device)
                calls[name, size, batch] = partial(model, pixels)
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluating(model))
        modes.enter_context(torch.inference_mode())
        modes.enter_context(torch.autocast(device.type, autocast, autocast is not None))
        times = time_in_turn(calls, device, budget_s, rounds)
    return {
        (name, size): _cost(times[name, size, 1], times[name, size, THROUGHPUT_BATCH], macs(model, size, channels))
        for name, model in models.items()
        for size in dict.fromkeys(sizes)
    }


def _cost(single: Timing, several: Timing, products: int) -> Cost:
    return Cost(
        latency_ms=single.median_ms,
        latency_low_ms=min(single.rounds_ms),
        latency_high_ms=max(single.rounds_ms),
        images_per_s=1000 * THROUGHPUT_BATCH / several.median_ms,
        macs=products,
        disturbed=single.disturbed or several.disturbed,
    )


def macs(model: nn.Module, size: Size, channels: int = 3) -> int:
    """Multiply-accumulates of one image (1, channels, H, W): convolutions, matrix products and attention.

    Counted by running a float32 copy on the CPU with the mathematical form of attention, as its fused kernels are not
    all known to torch's counter. Element-wise work (norms, activations, resampling) is not counted, as usual.
    """
    from anyres.evaluation.products import Products  # with triton

    copied = copy.deepcopy(model).to("cpu", torch.float32).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.TransformerEncoderLayer's fused kernel hides its products
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Products() as counter:
            copied(torch.zeros(1, channels, size.height, size.width))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.macs)


def _synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done all it was asked to; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
