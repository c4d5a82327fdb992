"""Fold what is linear at inference into the layer beside it: the same function of the input with fewer operations.

Functions of modules. Each returns a new module and leaves its arguments unchanged; the arithmetic is float64, the
result has the dtype and device of the weights it came from, and needs no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn


def to_float64(tensor: Tensor) -> Tensor:
    """A detached copy in float64."""
    return tensor.detach().to(torch.float64, copy=True)


def linear(weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"], like: Tensor) -> nn.Linear:
    """A linear layer of these weights, in dtype and on device of ``like``."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight, made.bias = constant(weight, like), constant(bias, like)
    return made


def constant(tensor: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter without gradient: a copy, in dtype and on device of ``like``."""
    return nn.Parameter(tensor.detach().to(like, copy=True), requires_grad=False)


def bias_of(layer: nn.Linear | nn.Conv2d) -> Float[Tensor, " o"]:
    """The layer's bias in float64, zeros if it has none."""
    return to_float64(layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias)


def fold_input_affine(layer: nn.Linear, scale: Float[Tensor, " i"], shift: Float[Tensor, " i"]) -> nn.Linear:
    """x -> layer(scale * x + shift): the affine part of the norm before the layer."""
    weight = to_float64(layer.weight)
    return linear(weight * to_float64(scale), bias_of(layer) + weight @ to_float64(shift), layer.weight)


def fold_output_scale(layer: nn.Linear, scale: Float[Tensor, " o"] | None) -> nn.Linear:
    """x -> scale * layer(x), for LayerScale; with None a copy of the layer."""
    weight, bias = to_float64(layer.weight), bias_of(layer)
    if scale is not None:
        weight, bias = to_float64(scale)[:, None] * weight, to_float64(scale) * bias
    return linear(weight, bias, layer.weight)


def center_output(layer: nn.Linear) -> nn.Linear:
    """x -> layer(x) minus its mean over the channels."""
    weight, bias = to_float64(layer.weight), bias_of(layer)
    return linear(weight - weight.mean(dim=0), bias - bias.mean(), layer.weight)


def center(tokens: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
    """The tokens minus the mean over their channels, in their own dtype."""
    return tokens - tokens.mean(dim=-1, keepdim=True)


def scale(layer: nn.Linear, factor: float) -> nn.Linear:
    """x -> factor * layer(x)."""
    return linear(to_float64(layer.weight) * factor, bias_of(layer) * factor, layer.weight)


def concat_outputs(layers: Sequence[nn.Linear]) -> nn.Linear:
    """x -> the outputs of all layers, concatenated: layers that read the same input."""
    weight = torch.cat([to_float64(layer.weight) for layer in layers])
    return linear(weight, torch.cat([bias_of(layer) for layer in layers]), layers[0].weight)


def sum_outputs(layers: Sequence[nn.Linear]) -> nn.Linear:
    """[x₁, x₂, ...] concatenated -> the sum of layer_i(x_i): layers whose outputs are added."""
    weight = torch.cat([to_float64(layer.weight) for layer in layers], dim=1)
    return linear(weight, torch.stack([bias_of(layer) for layer in layers]).sum(0), layers[0].weight)


def compose(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """x -> second(first(x)), as one product."""
    weight = to_float64(second.weight)
    return linear(weight @ to_float64(first.weight), weight @ bias_of(first) + bias_of(second), first.weight)


def pointwise(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution as the linear layer over channels that it is."""
    return linear(conv.weight.flatten(1), bias_of(conv), conv.weight)


def layer_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """A copy of the norm with its affine part."""
    made = nn.LayerNorm(norm.normalized_shape, norm.eps, device="meta")
    made.weight, made.bias = constant(norm.weight, norm.weight), constant(norm.bias, norm.weight)
    return made


def convolution(
    conv: nn.Conv2d, norm: nn.BatchNorm2d | nn.SyncBatchNorm | None = None, *, center: bool = False
) -> nn.Conv2d:
    """x -> norm(conv(x)) by the norm's running statistics, as one convolution with bias; without norm a copy.

    ``center``: its output minus the mean over the channels. The weights have the memory format channels last, so the
    output has it too, and reshapes to tokens without a copy.
    """
    weight, bias = to_float64(conv.weight), bias_of(conv)
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = to_float64(norm.weight) * (to_float64(norm.running_var) + norm.eps).rsqrt()
        weight = weight * factor[:, None, None, None]
        bias = (bias - to_float64(norm.running_mean)) * factor + to_float64(norm.bias)
    if center:
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
    kernel, stride, padding = cast(Any, (conv.kernel_size, conv.stride, conv.padding))
    made = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups, device="meta")
    made.weight, made.bias = constant(weight, conv.weight), constant(bias, conv.weight)
    return made.to(memory_format=torch.channels_last)


def depthwise(weight: Float[Tensor, "c 1 k k"], bias: Float[Tensor, " c"], like: Tensor) -> nn.Conv2d:
    """A depthwise convolution of these weights that keeps the grid: k is odd, zero padding of k // 2."""
    channels, side = weight.shape[0], weight.shape[2]
    made = nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels, device="meta")
    made.weight, made.bias = constant(weight, like), constant(bias, like)
    return made
