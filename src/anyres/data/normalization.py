"""The mean and deviation that go with a number of channels. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from anyres.config import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalization(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """``data.mean`` and ``data.std`` for so many channels.

    One value is repeated, also where it was given for each of three; ImageNet's own three, the default, become their
    mean, repeated. Raises UserError for another number of values.
    """
    return _for_channels("mean", mean, IMAGENET_MEAN, channels), _for_channels("std", std, IMAGENET_STD, channels)


def _for_channels(name: str, values: Sequence[float], usual: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(values)
    if len(set(values)) == 1:
        return (values[0],) * channels
    if tuple(values) == tuple(usual):
        return (sum(usual) / len(usual),) * channels
    raise UserError(
        f"data.{name} has {len(values)} values, and images are read with {channels} "
        f"{'channel' if channels == 1 else 'channels'}: give one value{f', or {channels}' if channels > 1 else ''}"
    )
