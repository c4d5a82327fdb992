"""How many CPU threads a run computes with.

Their number decides how sums are rounded, so it is part of a run's state: a resumed run takes the same one. Where
nobody has chosen it, it is the number of processors, unless fewer are plainly faster, as beside busy neighbors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator

from anyres.ops.processors import FOLLOWS_QUOTA, processors
from anyres.training.state import Progress

log = logging.getLogger(__name__)

PLAINLY = 1.25
"""So many times as fast fewer threads have to be, so that a quiet machine always takes the same number."""
ROUNDS = 5
BUDGET_S = 15.0
"""After so long there are no further rounds."""


@contextlib.contextmanager
def run_threads(accelerator: Accelerator, progress: Progress, wanted: int | None) -> Iterator[list[int]]:
    """Inside, PyTorch computes with the run's threads, and ``progress`` knows their number; afterwards as before.

    ``wanted``: what the user says, None for nothing. Gives the numbers that a first step is still to choose from
    (``choose``); none where it is settled.
    """
    before = torch.get_num_threads()
    numbers: list[int] = []
    if accelerator.device.type == "cpu":
        most = min(before, processors())
        if wanted is not None:
            if progress.threads not in (0, wanted):
                log.info("%d threads instead of %d: sums are rounded otherwise from here on", wanted, progress.threads)
            progress.threads = wanted
        elif not progress.threads:
            progress.threads = before if progress.step else _least(accelerator, most)  # an earlier version's, as it was
            if accelerator.num_processes == 1 and not progress.step and not _given():
                numbers = list(dict.fromkeys(most >> halved for halved in range(most.bit_length())))
        torch.set_num_threads(progress.threads)
    try:
        yield numbers if len(numbers) > 1 else []
    finally:
        torch.set_num_threads(before)


def choose(progress: Progress, numbers: list[int], trial: Callable[[], None]) -> None:
    """Take the first of ``numbers``, or another with which ``trial``, which leaves no trace, is plainly faster; then
    ``numbers`` is empty."""
    times: dict[int, list[float]] = {number: [] for number in numbers}
    end = time.perf_counter() + BUDGET_S
    for turn in range(ROUNDS + 1):  # the first one warms up
        for number in numbers:
            torch.set_num_threads(number)
            start = time.perf_counter()
            trial()
            if turn:
                times[number].append(time.perf_counter() - start)
        if turn and time.perf_counter() > end:
            break
    # The slowest step is left out: a hiccup. Beside busy neighbors several are slow, and they count.
    took = {number: statistics.mean(sorted(each)[: max(len(each) - 1, 1)]) for number, each in times.items()}
    fastest = min(took, key=lambda number: took[number])
    if took[numbers[0]] < PLAINLY * took[fastest]:
        fastest = numbers[0]
    else:
        log.info(
            "%d threads, as they are faster here than %d (%.0f ms a step, not %.0f): other programs use the processors",
            *(fastest, numbers[0], 1000 * took[fastest], 1000 * took[numbers[0]]),
        )
    numbers.clear()
    progress.threads = fastest
    torch.set_num_threads(fastest)


def _given() -> bool:
    """Whether the user, or a launcher such as torchrun, has said how many threads there are."""
    return "OMP_NUM_THREADS" in os.environ and FOLLOWS_QUOTA not in os.environ


def _least(accelerator: Accelerator, here: int) -> int:
    """The least number over all processes, so that all compute alike."""
    if accelerator.num_processes == 1:
        return here
    return int(accelerator.gather(torch.tensor([here], device=accelerator.device)).min().item())
