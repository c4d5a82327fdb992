"""The protocol of an inference engine: what it is given, what it returns, and the table entry that describes it.

A new engine is one file with one ``Engine``, registered by ``backend.register_engine``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from anyres.config import UserError

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Runner = Callable[[Tensor], Tensor]
"""Float32 pixels (b, c, h, w) of the shape it was built for -> float32 logits (b, k), on the same device."""


class BackendUnavailable(UserError):
    """This engine cannot run this model in this precision on this machine."""


@dataclass(frozen=True)
class BuildSpec:
    """What an engine makes a runner of."""

    name: str  # of the backend, as messages call it: openvino:bf16
    model: nn.Module  # in evaluation mode, float32, on the device of ``example``
    example: Float32[Tensor, "b c h w"]  # an input of the shape that the runner takes
    precision: Precision  # of matrix products and convolutions
    calibration: Sequence[Float32[Tensor, "b c h w"]]  # batches of real images, for int8; else empty
    threads: int  # of the CPU, for engines with threads of their own
    tuned: bool  # the engine's settings that we found faster; False: the engine's own
    kernels: bool  # Triton kernels in place of plain operations (CUDA alone)


@dataclass(frozen=True)
class Engine:
    """One engine, as an entry of the table ``backend.ENGINES``."""

    name: str  # what users write: openvino
    build: Callable[[BuildSpec], Runner]  # raises BackendUnavailable
    precisions: tuple[Precision, ...]  # that it can run on some machine
    devices: tuple[str, ...] | None = None  # PyTorch's device types that it runs on; None: any
    packages: tuple[str, ...] = ()  # that it needs beside PyTorch, by import name
    int8_packages: tuple[str, ...] = ()  # that int8 needs beside these
    own_threads: bool = False  # whether it has CPU threads of its own, which compete with PyTorch's
    takes_kernels: bool = False  # whether it runs PyTorch operations, and so Triton kernels (written NAME+triton)
