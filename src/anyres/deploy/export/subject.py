"""What is exported: a model with all that is written into its file and asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from anyres.deploy.export.certificate import Pictures, Referee
from anyres.flow import Size, SizeResult


@dataclass(frozen=True)
class Calibration:
    """What int8 is made with and measured on."""

    images: Sequence[UInt8[Tensor, "c _ _"]]  # to train with: ranges are read from them
    sizes: Sequence[Size]  # that will be asked for, in pixels: images are seen at one after the other
    scored: Pictures  # held-out: on them, at each size, int8 and the model are compared


@dataclass(frozen=True)
class Subject:
    """What is exported."""

    name: str  # of the model
    referee: Referee  # the model, and how it sees images
    sizes: Sequence[Size]  # that the file is tried at, in pixels; the first is the usual one
    pictures: Pictures  # real images
    said: Mapping[str, Any]  # what stands in the file, by key
    curve: Sequence[SizeResult]  # measured; () where none was
    about: Mapping[str, Any]  # what makes the model again from its weights (``models.weights.save_weights``)
    int8: Calibration | None  # what int8 is made with; None: the file is in float32
    doing: Callable[[str], AbstractContextManager[None]]  # says what is going on while it is open
