"""Switch between the plain form of an operation and its Triton kernel (docs/kernels.md).

An operation that has a kernel asks ``kernel_for`` at every call. Kernels are off unless a caller opens
``triton_switch.triton_kernels()``; models know nothing of them, and their state dicts are the same either way.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from anyres.config import UserError

OPERATIONS = ("add_norm", "attend_plus", "normed_heads", "talking_heads")
"""Operations with a kernel of the same name and arguments in ``anyres.ops.triton``."""

_in_use: dict[str, Callable[..., Any]] = {}  # name of an operation -> its kernel; empty while kernels are off
_asked: list[set[str]] = []  # sets that collect the names of the operations that are called


def kernel_for(operation: str) -> Callable[..., Any] | None:
    """The kernel to call instead of the plain form of ``operation``; None while kernels are off."""
    if _asked:
        for names in _asked:
            names.add(operation)
    return _in_use.get(operation)


@contextmanager
def using(kernels: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, ``kernel_for`` gives these kernels, by the names of their operations. It holds for the whole process."""
    before = dict(_in_use)
    _in_use.update(kernels)
    try:
        yield
    finally:
        _in_use.clear()
        _in_use.update(before)


@torch.no_grad()
def kernel_operations(model: nn.Module, size: tuple[int, int], device: torch.device, channels: int = 3) -> set[str]:
    """Names of the operations with a kernel that ``model`` calls for an image of ``size`` (height, width).

    It runs the model once, on ``device``, in evaluation mode.
    """
    names: set[str] = set()
    training = model.training
    _asked.append(names)
    try:
        model.eval()(torch.zeros(1, channels, *size, device=device))
    finally:
        _asked.remove(names)
        model.train(training)
    return names


def triton_here() -> bool:
    """Whether triton is installed, as with PyTorch on Linux."""
    return importlib.util.find_spec("triton") is not None


def check_triton(device: torch.device) -> None:
    """Raises UserError where the kernels do not run."""
    if device.type != "cuda":
        raise UserError(f"Triton's kernels need a CUDA device, here it is {device.type}")
    if not triton_here():
        raise UserError("Triton's kernels need the package triton, which is not installed")
