"""Several processes for one file of answers, as torchrun starts them: each answers its share of the parts, and the
first one lists the images before and joins the answers after. They speak by the parts on disk alone."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from anyres.config import UserError
from anyres.data.loader import Rank
from anyres.flow.device import DEVICE, on_device

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOKS_S, TOLD_S = 0.2, 60.0
"""Seconds between two looks at what others do, and between two lines that tell of the waiting."""


def own_rank() -> Rank:
    """This process among those of torchrun; the only one where there are no others. Raises UserError."""
    try:
        return Rank(int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1))
    except ValueError:
        raise UserError("RANK and WORLD_SIZE are no numbers: torchrun sets them, or unset them") from None


def own_gpu(rank: Rank) -> AbstractContextManager[None]:
    """Inside, models are opened on this process's GPU, where there are several of both."""
    local = os.environ.get("LOCAL_RANK")
    if rank.world == 1 or local is None or os.environ.get(DEVICE) or torch.cuda.device_count() < 2:
        return nullcontext()
    return on_device(local)


def wait_for(look: Callable[[], T | None], what: str) -> T:
    """What ``look`` gives, as soon as it is not None; every minute the user is told that ``what`` is waited for."""
    told = time.monotonic()
    while (found := look()) is None:
        time.sleep(LOOKS_S)
        if time.monotonic() - told > TOLD_S:
            log.info("waiting for %s", what)
            told = time.monotonic()
    return found
