"""int8 by NNCF, in a process of its own: ``python -m anyres.deploy.quantise FOLDER SETTINGS``.

OpenVINO 2026.4's CPU plugin ends the process (a segmentation fault) on some int8 graphs: while NNCF 3.4 runs them to
read their ranges, or when they are compiled. So both happen here first. FOLDER holds ``whole.xml`` and ``images.npy``
(batches, b, 3, h, w); it is left with ``small.xml``, which was compiled and run with SETTINGS (JSON).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np


def main(folder: Path, settings: dict[str, str | int]) -> None:
    """Read, quantise, write, run."""
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    images = np.load(folder / "images.npy")
    core = openvino.Core()
    made = nncf.quantize(
        core.read_model(folder / "whole.xml"),
        nncf.Dataset(list(images)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    openvino.save_model(made, folder / "small.xml", compress_to_fp16=False)
    core.compile_model(str(folder / "small.xml"), "CPU", settings)(images[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
