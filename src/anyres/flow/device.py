"""The device that a model runs on."""

from __future__ import annotations

import torch


def pick_device() -> torch.device:
    """The best device of this machine: CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` has bf16 matrix instructions (CUDA 8.0 and later, AVX512-BF16, AMX, Arm BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
