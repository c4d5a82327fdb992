"""int8 by NNCF, in a process of its own: ``python -m anyres.deploy.engines.quantize FOLDER SETTINGS``.

OpenVINO 2026.4's CPU plugin ends the process (a null pointer in its snippets' tokenization) on some graphs of ResT v2.
NNCF reads ranges without those snippets; whether the int8 graph can be compiled with them is tried here first. Without
attention nothing is smoothed: on ResMLP SmoothQuant (Xiao et al., ICML 2023) cost 2.9 points of top-1. FOLDER
holds ``whole.xml`` and ``images.npy`` (batches, b, 3, h, w); it is left with ``small.xml``, which was compiled and run
with SETTINGS (JSON).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from anyres.deploy.engines.openvino_no_telemetry import openvino


class Careful(openvino.Core):  # type: ignore[misc]
    """What NNCF compiles its models with."""

    def compile_model(self, model: openvino.Model, device_name: str, config: dict[str, Any]) -> openvino.CompiledModel:
        """Without snippets."""
        return super().compile_model(model, device_name, config | {"SNIPPETS_MODE": "DISABLE"})


def main(folder: Path, settings: dict[str, str | int]) -> None:
    """Read, quantise, write, run."""
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    import nncf

    core = openvino.Core()
    openvino.Core = Careful
    nncf.set_log_level(logging.ERROR)
    images = np.load(folder / "images.npy")
    whole = core.read_model(folder / "whole.xml")
    attends = any(each.get_type_name() in ("ScaledDotProductAttention", "Softmax") for each in whole.get_ops())
    smoothing = nncf.AdvancedSmoothQuantParameters() if attends else nncf.AdvancedSmoothQuantParameters(-1, -1)
    made = nncf.quantize(
        whole,
        nncf.Dataset(list(images)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smoothing),
    )
    openvino.save_model(made, folder / "small.xml", compress_to_fp16=False)
    core.compile_model(str(folder / "small.xml"), "CPU", settings)(images[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
