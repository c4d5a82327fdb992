"""int8 by NNCF, in a process of its own: ``python -m anyres.deploy.quantise FOLDER``.

NNCF 3.4 compiles graphs with OpenVINO on its way, and now and then that ends the process (a segmentation fault, seen
where onnxruntime had been used before); so it is not the user's. FOLDER holds ``whole.xml`` and ``images.npy``
(batches, b, 3, h, w); it is left with ``small.xml``.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    """Read, quantise, write."""
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    images = np.load(folder / "images.npy")
    made = nncf.quantize(
        openvino.Core().read_model(folder / "whole.xml"),
        nncf.Dataset(list(images)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    openvino.save_model(made, folder / "small.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
