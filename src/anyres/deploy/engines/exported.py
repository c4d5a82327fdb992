"""A model as an exported program, from which onnxruntime and OpenVINO make their own."""

from __future__ import annotations

import linecache
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import graph_module

from anyres.config import first_line
from anyres.deploy.engines.engine import BackendUnavailable
from anyres.deploy.fuse.tracing import tracing_for_cpu

_TURN = threading.Lock()
_makers = 0
_before: frozenset[str] = frozenset()


@contextmanager
def forgetting_sources() -> Iterator[None]:
    """Drops the source texts of the graphs made within, once nobody makes any.

    torch (2.15) keeps the text of every graph to the end of the process, for tracebacks: 0.2 MiB for an export of
    restv2_nano and 0.6 for OpenVINO's conversion of it.
    """
    global _makers, _before  # noqa: PLW0603
    kept = graph_module._loader.eval_cache
    with _TURN:
        if not _makers:
            _before = frozenset(kept)
        _makers += 1
    try:
        yield
    finally:
        with _TURN:
            _makers -= 1
            for name in () if _makers else kept.keys() - _before:
                del kept[name]
                linecache.cache.pop(name, None)


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
