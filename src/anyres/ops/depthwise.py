"""Depthwise convolution, in float32 where a processor's bf16 one is slow."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one group per input channel, weights (c * multiplier, 1, k, k), keys and initialisation unchanged.

    Under bf16 autocast on a CPU it computes in float32: it is bound by memory, and oneDNN's bf16 backward for grouped
    convolutions is several times slower than the float32 one (benchmarks/cpu_kernels.py). Elsewhere nothing differs.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0, multiplier: int = 1
    ) -> None:
        super().__init__(channels, channels * multiplier, kernel_size, stride, padding, groups=channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Map -> map of c * multiplier channels; output channel j belongs to input channel j // multiplier."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                bias = None if self.bias is None else self.bias.float()
                out: Tensor = self._conv_forward(x.float(), self.weight.float(), bias)
                return out
        return super().forward(x)
