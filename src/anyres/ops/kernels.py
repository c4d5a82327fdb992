"""Which form of an operation a model's modules call: the plain one, or the Triton kernel beside it (docs/kernels.md).

A module that has the choice holds the plain function as an attribute. ``use_triton`` puts the kernel of the same name
and arguments in its place. Nothing else changes: no key of the state dict, no argument, and not the plain form.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import nn

from anyres.config import UserError
from anyres.ops.attention import attend_plus
from anyres.ops.mixed_heads import normed_heads, talking_heads
from anyres.ops.residual import add_norm

Kernels = Literal["plain", "triton"]

PLAIN = (add_norm, attend_plus, normed_heads, talking_heads)


def triton_here() -> bool:
    """Whether triton is installed, as with PyTorch on Linux."""
    return importlib.util.find_spec("triton") is not None


def check_triton(device: torch.device) -> None:
    """Raises UserError where the kernels do not run."""
    if device.type != "cuda":
        raise UserError(f"Triton's kernels need a CUDA device, here it is {device.type}")
    if not triton_here():
        raise UserError("Triton's kernels need the package triton, which is not installed")


def use_triton(model: nn.Module) -> int:
    """Put the kernels in the place of the plain operations in ``model``; how many.

    They run on CUDA tensors; for others the plain form is called as before.
    """
    from anyres.ops import triton as kernels

    count = 0
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if any(value is plain for plain in PLAIN):
                setattr(module, name, getattr(kernels, value.__name__))
                count += 1
    return count
