"""OpenVINO, telling nobody: import it from here.

With its package ``openvino_telemetry`` it reports imports and conversions to its makers, by a process for each report,
unasked. Where processes are spawned (a child of ``multiprocessing``'s "spawn") each of them imports the main module
anew, PyTorch with it, beside the first answers; where the report gets no answer it waits for up to 3 seconds. Whoever
imported OpenVINO before anyres has its reports too.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed

import openvino  # noqa: E402, TID251

__all__ = ["openvino"]
