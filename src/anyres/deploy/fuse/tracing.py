"""The one switch between the two forms that some folded layers have.

Eager PyTorch and exporters get the plain form. Compilers for CPUs (OpenVINO, onnxruntime, inductor) are faster with
another form of the same function: root-mean-square norms, keys padded to a multiple of 16, heads mixed by sums. The
engines open ``tracing_for_cpu()`` when they trace a model; nothing else chooses the form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock

BUILDING = RLock()
"""Held by the one thread that traces, compiles or bakes: PyTorch's exporter and compiler change the whole process
(patches of nn.Module, and what ``torch.compiler.is_compiling`` says)."""
_FOR_CPU = False
_INSIDE: list[bool] = []
"""What the threads that are inside ask for, in the order they came."""
_CHANGING = Lock()


def is_tracing_for_cpu() -> bool:
    """Whether layers take their form for CPU compilers."""
    return _FOR_CPU


@contextmanager
def tracing_for_cpu(enabled: bool = True) -> Iterator[None]:
    """Inside, folded layers take their form for CPU compilers (with ``enabled`` False: their plain form).

    The switch holds for the whole process, for all its threads, as long as one of them is inside; where they ask for
    different forms the last to come decides. Both forms are the same function to rounding.
    """
    with _CHANGING:
        _INSIDE.append(enabled)
        _set(_INSIDE[-1])
    try:
        yield
    finally:
        with _CHANGING:
            _INSIDE.reverse()
            _INSIDE.remove(enabled)  # the last of its kind
            _INSIDE.reverse()
            _set(_INSIDE[-1] if _INSIDE else False)


def _set(for_cpu: bool) -> None:
    global _FOR_CPU  # noqa: PLW0603  # a compiler that traces can read a global, and knows when it changes
    _FOR_CPU = for_cpu
