"""The one switch between the two forms that some folded layers have.

Eager PyTorch and exporters get the plain form. Compilers for CPUs (OpenVINO, onnxruntime, inductor) are faster with
another form of the same function: root-mean-square norms, keys padded to a multiple of 16, heads mixed by sums. The
engines open ``tracing_for_cpu()`` when they trace a model; nothing else chooses the form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_FOR_CPU = False


def is_tracing_for_cpu() -> bool:
    """Whether layers take their form for CPU compilers."""
    return _FOR_CPU


@contextmanager
def tracing_for_cpu(enabled: bool = True) -> Iterator[None]:
    """Inside, folded layers take their form for CPU compilers (with ``enabled`` False: their plain form).

    The switch holds for the whole process. Both forms are the same function to rounding.
    """
    global _FOR_CPU  # noqa: PLW0603  # a compiler that traces can read a global, and knows when it changes
    before = _FOR_CPU
    _FOR_CPU = enabled
    try:
        yield
    finally:
        _FOR_CPU = before
