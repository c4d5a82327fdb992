"""PyTorch without a compiler: any shape, nothing to build."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from anyres.deploy.engines.engine import DTYPES, BuildSpec, Engine, Runner
from anyres.ops.triton_switch import triton_kernels


def build_eager(spec: BuildSpec) -> Runner:
    """The model itself, as a copy where its dtype changes."""
    dtype = DTYPES[spec.precision]
    model = spec.model if dtype == torch.float32 else copy.deepcopy(spec.model).to(dtype)

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        with triton_kernels(spec.kernels):
            logits: Tensor = model(x.to(dtype))
        return logits.float()

    return run


EAGER = Engine("eager", build_eager, ("fp32", "bf16"), takes_kernels=True)
