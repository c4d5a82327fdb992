"""Convolutions that leave bf16 autocast on a processor where oneDNN's bf16 is slow, or wrong."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one group per input channel, weights (c * multiplier, 1, k, k), keys and initialisation unchanged.

    Under bf16 autocast on a CPU it computes in float32. Forward and backward, that is 1.05 to 1.3 times as fast as
    oneDNN's bf16 on the small maps of small models, and 0.6 times at 96 channels and 56 px (benchmarks/cpu_kernels.py).
    Elsewhere nothing differs.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0, multiplier: int = 1
    ) -> None:
        super().__init__(channels, channels * multiplier, kernel_size, stride, padding, groups=channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Map -> map of c * multiplier channels; output channel j belongs to input channel j // multiplier."""
        return _in_float32(self, x) if _autocast_on_cpu(x) else super().forward(x)


class StridedConv2d(nn.Conv2d):
    """nn.Conv2d, of kernel 3, stride 2, padding 1 unless others are given; keys and initialisation unchanged.

    In bf16 on a CPU an output of one column is computed in float32. oneDNN's bf16 (torch 2.15) is wrong there: on
    processors with AMX the answer itself, every time (kernels 3 and 4, several rows), elsewhere the weight gradient is
    now and then not finite (4 to 8 of 12 tries at 64 channels). Elsewhere nothing differs.
    """

    def __init__(
        self,
        channels: int,
        channels_out: int,
        *,
        kernel_size: int = 3,
        stride: int = 2,
        padding: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(channels, channels_out, kernel_size, stride, padding, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Map -> map of the convolution's own size, ceil(h / 2) x ceil(w / 2) with the default kernel."""
        autocast = _autocast_on_cpu(x)
        narrow = autocast or (x.dtype == torch.bfloat16 and x.device.type == "cpu")
        if not (narrow and self.has_one_column(x)):
            return super().forward(x)
        out = _in_float32(self, x)
        return out if autocast else out.to(x.dtype)

    def has_one_column(self, x: Float[Tensor, "b c h w"]) -> bool:
        """Whether the output of ``x`` is one column wide."""
        return x.shape[-1] + 2 * int(self.padding[1]) < self.kernel_size[1] + self.stride[1]


def _autocast_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")


def _in_float32(conv: nn.Conv2d, x: Tensor) -> Tensor:
    bias = None if conv.bias is None else conv.bias.float()
    with torch.autocast("cpu", enabled=False):
        out: Tensor = conv._conv_forward(x.float(), conv.weight.float(), bias)
    return out
