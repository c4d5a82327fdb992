"""PyTorch's compiler: one program for each shape, with frozen weights (CPU) or a CUDA graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from anyres.config import first_line
from anyres.deploy.engines.engine import DTYPES, BackendUnavailable, BuildSpec, Engine, Runner
from anyres.deploy.engines.exported import quiet
from anyres.deploy.fuse.tracing import tracing_for_cpu
from anyres.ops.triton_switch import triton_kernels

RECOMPILE_LIMIT = 1024
"""Shapes of one model's class that are compiled in a process; beyond PyTorch's own 8 it would silently run eagerly."""


def build_inductor(spec: BuildSpec) -> Runner:
    """Compiled for the shape of the example. Raises BackendUnavailable for whatever the compiler raises."""
    on_cpu, dtype = spec.example.device.type == "cpu", DTYPES[spec.precision]
    options: dict[str, Any] = {"freezing": True} if on_cpu else {"triton.cudagraphs": True}
    compiled = torch.compile(copy.deepcopy(spec.model).to(dtype), dynamic=False, options=options)

    def run(x: Tensor) -> Tensor:
        # Both switches are part of the program: with others PyTorch would compile anew. Freezing needs no_grad instead
        # of inference_mode, so that the weights it keeps are ordinary tensors.
        with torch.no_grad(), tracing_for_cpu(on_cpu), triton_kernels(spec.kernels):
            logits: Tensor = compiled(x.to(dtype))
            return logits.to(torch.float32, copy=True)  # a CUDA graph's own output is overwritten by the next call

    try:
        with quiet(), torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            run(spec.example)
    except Exception as error:  # such as a missing C++ compiler
        raise BackendUnavailable(f"{spec.name}: {first_line(error)}") from None
    return run


INDUCTOR = Engine("inductor", build_inductor, ("fp32", "bf16"), takes_kernels=True)
