"""Activation checkpointing, block by block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """``block(*inputs)``; with ``recompute`` its activations are not stored but made again in the backward pass."""
    out: Tensor = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
    return out
