"""onnxruntime on a CPU: float32, and int8 with ranges from calibration images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anyres.config import first_line
from anyres.deploy.engines.engine import BackendUnavailable, BuildSpec, Engine, Runner
from anyres.deploy.engines.exported import exported, forgetting_sources, quiet


@forgetting_sources()
def build_onnxruntime(spec: BuildSpec) -> Runner:
    """An inference session of the exported model. Raises BackendUnavailable."""
    import onnxruntime

    graph = exported(spec.model, spec.example)
    try:
        with quiet():
            program = torch.onnx.export(graph, dynamo=True, verbose=False)
    except Exception as error:  # an operation of another package's model
        raise BackendUnavailable(f"{spec.name}: {first_line(error)}") from None
    assert program is not None
    proto = program.model_proto
    if spec.precision == "int8":
        proto = quantized(proto, spec.calibration)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = spec.threads, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run


def quantized(proto: Any, calibration: Sequence[Tensor]) -> Any:
    """An ONNX model with int8 products and convolutions, its ranges read from ``calibration``."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = proto.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        whole, ready, small = (str(Path(folder) / part) for part in ("whole.onnx", "ready.onnx", "small.onnx"))
        onnx.save(proto, whole)
        quant_pre_process(whole, ready, skip_symbolic_shape=True)  # folds constants
        kinds = ["Conv", "MatMul", "Gemm"]
        quantize_static(ready, small, Reader(), QuantFormat.QDQ, per_channel=True, op_types_to_quantize=kinds)
        return onnx.load(small)


ONNXRUNTIME = Engine(
    "onnxruntime",
    build_onnxruntime,
    ("fp32", "int8"),
    devices=("cpu",),
    packages=("onnxruntime", "onnx", "onnxscript"),
    own_threads=True,
)
