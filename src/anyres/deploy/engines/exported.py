"""A model as an exported program, from which onnxruntime and OpenVINO make their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from anyres.config import first_line
from anyres.deploy.engines.engine import BackendUnavailable
from anyres.deploy.fuse.tracing import tracing_for_cpu


def exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """``model`` as a graph for inputs of the shape of ``example``, in its form for CPUs. Raises BackendUnavailable."""
    try:
        with torch.no_grad(), quiet(), tracing_for_cpu():
            return torch.export.export(model, (example,))
    except Exception as error:
        raise BackendUnavailable(f"{type(model).__name__} cannot be exported: {first_line(error)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings that exporters and compilers give about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
