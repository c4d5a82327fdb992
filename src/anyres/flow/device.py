"""The device that a model runs on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from anyres.config import UserError

DEVICE = "ANYRES_DEVICE"
"""The environment variable that names the device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""


def pick_device() -> torch.device:
    """The device that ``ANYRES_DEVICE`` names, or the best of this machine: CUDA, then MPS, then the CPU.

    Raises UserError for one that is not there.
    """
    if wanted := os.environ.get(DEVICE):
        return named_device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def named_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1`` (or ``1``) or ``mps``. Raises UserError for another, and where it is not."""
    found = re.fullmatch(r"(cpu|mps|cuda)|(?:cuda:)?(\d{1,3})", name.strip().lower())
    if not found:
        several = "; several GPUs: `torchrun` (docs/scale.md)" if "," in name else ""
        raise UserError(f"device {name!r} is none of cpu, cuda, cuda:1 and mps{several}")
    device = torch.device(found[1] or f"cuda:{found[2]}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"device {name!r} is not there: this machine has {count or 'no'} CUDA devices (see anyres doctor)"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {name!r} is not there: give cpu, or leave it out")
    return device


@contextmanager
def on_device(name: str | None) -> Iterator[None]:
    """Inside, ``pick_device`` gives the device of that name (None: the best as ever). Raises UserError."""
    if name is None:
        yield
        return
    before = os.environ.get(DEVICE)
    os.environ[DEVICE] = str(named_device(name))
    try:
        yield
    finally:
        os.environ.pop(DEVICE)
        if before is not None:
            os.environ[DEVICE] = before


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``.

    To a CUDA device it is copied in a queue of its own, where the host waits for nothing but the copy: in the queue of
    what is computed it would wait for the step before.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    copies, computations = _copies(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        sent = tensor.to(device, non_blocking=True)
    computations.wait_stream(copies)
    sent.record_stream(computations)  # so that its memory is not given away too early
    return sent


@lru_cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The device's queue of copies."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` has bf16 matrix instructions (CUDA 8.0 and later, AVX512-BF16, AMX, Arm BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
