"""Triton kernels, each beside a plain twin of the same name and arguments (docs/kernels.md).

The only package that imports triton, and only ``anyres.ops.triton_switch`` imports it, when kernels are asked for.
"""

from anyres.ops.triton.emsa import attend_plus
from anyres.ops.triton.mixed_heads import normed_heads, talking_heads
from anyres.ops.triton.residual import add_norm

__all__ = ["add_norm", "attend_plus", "normed_heads", "talking_heads"]
