"""Triton's kernels on and off: the one place that joins operations with their kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from anyres.ops.kernels import OPERATIONS, using


@contextmanager
def triton_kernels(enabled: bool = True) -> Iterator[None]:
    """Inside, operations that have a Triton kernel call it; with ``enabled`` False nothing changes.

    A kernel runs on CUDA tensors and calls the plain form for others. The switch holds for the whole process. Code
    that ``torch.compile`` compiled inside has to be called inside, else it is compiled again.
    """
    if not enabled:
        yield
        return
    from anyres.ops import triton

    with using({name: getattr(triton, name) for name in OPERATIONS}):
        yield
