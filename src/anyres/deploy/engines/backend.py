"""An engine with a precision (``openvino:bf16``): the table of engines, what can run here, and how a model is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from anyres.config import UserError, nearest
from anyres.deploy.engines.eager import EAGER
from anyres.deploy.engines.engine import PRECISIONS, BackendUnavailable, BuildSpec, Engine, Precision, Runner
from anyres.deploy.engines.huge_pages import use_huge_pages
from anyres.deploy.engines.inductor import INDUCTOR
from anyres.deploy.engines.onnxruntime import ONNXRUNTIME
from anyres.deploy.engines.openvino import OPENVINO
from anyres.deploy.fuse.tracing import BUILDING
from anyres.flow import has_bf16
from anyres.ops.kernels import check_triton, kernel_operations, triton_here

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (EAGER, INDUCTOR, ONNXRUNTIME, OPENVINO)}
"""All engines by name; ``register_engine`` adds to it."""
TRITON = "+triton"


def register_engine(engine: Engine) -> None:
    """Add an engine to those that users can name and ``auto`` measures. Raises UserError if the name is taken."""
    if engine.name in ENGINES or TRITON in engine.name or ":" in engine.name:
        raise UserError(f"an engine cannot be called {engine.name!r}: taken, or with '+triton' or ':' in it")
    ENGINES[engine.name] = engine


@dataclass(frozen=True)
class Backend:
    """An engine and a precision, with Triton kernels or without; written ``openvino:bf16``, ``eager+triton:bf16``."""

    engine: str  # a name of ENGINES
    precision: Precision = "fp32"  # of matrix products and convolutions
    kernels: bool = False  # Triton kernels in place of plain operations

    def __str__(self) -> str:
        return f"{self.engine}{TRITON if self.kernels else ''}:{self.precision}"

    @classmethod
    def parse(cls, text: str) -> Backend:
        """``openvino:bf16``, or an engine alone for fp32. Raises UserError."""
        name, _, precision = text.partition(":")
        found = ENGINES.get(name.removesuffix(TRITON))
        kernels = name.endswith(TRITON)
        if found is None or (kernels and not found.takes_kernels):
            raise UserError(f"backend {name!r} is none of auto, {', '.join(ENGINES)}{nearest(name, ENGINES)}")
        return cls(found.name, parse_precision(precision or "fp32"), kernels)

    @property
    def own_threads(self) -> bool:
        """Whether the engine has CPU threads of its own."""
        return ENGINES[self.engine].own_threads


def parse_precision(text: str) -> Precision:
    """Raises UserError for none of PRECISIONS."""
    for precision in get_args(Precision):
        if text == precision:
            return precision  # type: ignore[no-any-return]
    raise UserError(f"precision {text!r} is none of {', '.join(PRECISIONS)}")


def candidates(device: torch.device, precisions: Sequence[Precision] = ("fp32", "bf16")) -> list[Backend]:
    """Every backend that can run on ``device`` here, in the given precisions; bf16 only where it is fast."""
    fast = [precision for precision in precisions if precision != "bf16" or has_bf16(device)]
    found = [
        Backend(engine.name, precision)
        for engine in ENGINES.values()
        if not missing(engine) and (engine.devices is None or device.type in engine.devices)
        for precision in fast
        if precision in engine.precisions
    ]
    if device.type == "cuda" and triton_here():
        found += [replace(backend, kernels=True) for backend in found if ENGINES[backend.engine].takes_kernels]
    return found


def missing(engine: Engine, precision: Precision = "fp32") -> list[str]:
    """Packages that the engine needs and that are not installed."""
    needed = (*engine.packages, *(engine.int8_packages if precision == "int8" else ()))
    return [name for name in needed if not importlib.util.find_spec(name)]


def build(
    model: nn.Module,
    backend: Backend,
    example: Float32[Tensor, "b c h w"],
    calibration: Sequence[Float32[Tensor, "_ c h w"]] = (),
    threads: int | None = None,
    tuned: bool = True,
    huge_pages: bool = False,
) -> Runner:
    """A runner of ``model`` (evaluation mode, float32) for inputs of the shape of ``example``, on its device.

    ``calibration``: normalized real images of the example's height and width, from which int8's ranges are read.
    ``threads``: of the CPU (None: as many as PyTorch uses). ``tuned``: settings that we found faster; False: the
    engine's own. ``huge_pages``: move what this process has in memory into huge pages (Linux; see ``use_huge_pages``);
    it changes the whole process. Raises BackendUnavailable.
    """
    engine = ENGINES[backend.engine]
    _check(engine, backend, example.device, len(calibration) > 0)
    if backend.kernels:
        _check_kernels(model, backend, example)
    batches = _in_batches(calibration, len(example)) if backend.precision == "int8" else []
    threads = threads or torch.get_num_threads()
    spec = BuildSpec(str(backend), model, example, backend.precision, batches, threads, tuned, backend.kernels)
    with BUILDING:
        run = engine.build(spec)
    if huge_pages:
        run(example)  # allocates what a batch needs
        use_huge_pages()
    return run


def _check(engine: Engine, backend: Backend, device: torch.device, calibrated: bool) -> None:
    """Raises BackendUnavailable where the engine's table entry, or this machine, rules the backend out."""
    if backend.precision not in engine.precisions:
        others = [name for name, each in ENGINES.items() if backend.precision in each.precisions]
        raise BackendUnavailable(
            f"{backend}: {engine.name} has no {backend.precision} for these models: use {' or '.join(others)}"
        )
    if backend.precision == "int8" and not calibrated:
        raise BackendUnavailable(f"{backend} needs some real images to read its ranges from: give calibration images")
    if engine.devices is not None and device.type not in engine.devices:
        raise BackendUnavailable(
            f"{backend} runs on {' and '.join(engine.devices)} alone: use eager or inductor for {device.type}"
        )
    lacking = missing(engine, backend.precision)
    if lacking:
        raise BackendUnavailable(f"{backend}: {lacking[0]} is not installed: pip install 'anyres[deploy]'")


def _check_kernels(model: nn.Module, backend: Backend, example: Tensor) -> None:
    """Raises BackendUnavailable where Triton does not run, or ``model`` calls no operation with a kernel."""
    try:
        check_triton(example.device)
    except UserError as error:
        raise BackendUnavailable(f"{backend}: {error}") from None
    _, channels, height, width = example.shape
    if not kernel_operations(model, (height, width), example.device, channels):
        raise BackendUnavailable(f"{backend}: no part of a {type(model).__name__} has a kernel")


def _in_batches(calibration: Sequence[Tensor], size: int) -> list[Tensor]:
    """All images in batches of ``size``; the first images fill up the last batch."""
    images = torch.cat(list(calibration))
    short = -len(images) % size
    whole = torch.cat([images, *[images] * (short // len(images)), images[: short % len(images)]])
    return list(torch.split(whole, size))
