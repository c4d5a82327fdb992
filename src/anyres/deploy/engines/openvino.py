"""OpenVINO on a CPU: float32, bf16, and int8 by NNCF with ranges from calibration images."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anyres.deploy.engines.engine import BackendUnavailable, BuildSpec, Engine, Runner
from anyres.deploy.engines.exported import exported, forgetting_sources, quiet
from anyres.flow import has_bf16

if TYPE_CHECKING:
    from anyres.deploy.engines.openvino_no_telemetry import openvino


@forgetting_sources()
def build_openvino(spec: BuildSpec) -> Runner:
    """A compiled model of the exported one. Raises BackendUnavailable.

    ``tuned``: a batch is split into equal parts, one for each of as many streams as divide both batch and threads, and
    matrices on the left of a product stay bf16. int8 is not split: ResMLP's logits, its ranges read from one image at
    a time, were 2.9 of their norm away.
    """
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    streams = math.gcd(len(spec.example), spec.threads) if spec.tuned and spec.precision != "int8" else 1
    example = spec.example[: len(spec.example) // streams]
    program = exported(spec.model, example)  # OpenVINO reads its tensors in place until it has compiled them
    bf16 = spec.precision != "fp32" and has_bf16(example.device)  # beside int8's products the rest is bf16 if fast
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": spec.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
    }
    with quiet():
        try:
            converted = openvino.convert_model(program)
        except Exception as error:  # an operation of another package's model; the last line names it
            why = str(error).strip().splitlines()[-1].lstrip("- ")
            raise BackendUnavailable(f"{spec.name}: OpenVINO cannot convert this model: {why}") from None
        converted.reshape(list(example.shape))  # it comes with free sides, for which plans are made with more copies
        if spec.precision == "int8":
            converted = quantized(converted, spec.calibration, settings)
        if bf16 and spec.tuned:
            keep_matrices_bf16(converted)
        compiled = openvino_core().compile_model(converted, "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    turn = Lock()  # a request that another thread has started is busy; together they use all processors

    def run(x: Tensor) -> Tensor:
        with turn:
            for request, part in zip(requests, np.split(x.numpy(), streams), strict=True):
                request.start_async([part], share_inputs=True)
            for request in requests:
                request.wait()
            return torch.from_numpy(np.concatenate([request.get_output_tensor().data for request in requests]))

    return run


def keep_matrices_bf16(graph: openvino.Model) -> None:
    """Make constant matrices on the left of a product bf16, for plans in bf16.

    A layer's weights become bf16 by themselves. A matrix on the left, which mixes tokens or heads, stays float32
    (2026.4), and with it the whole product. As bf16, marked as widened for storage only, it stays bf16.
    """
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    for product in graph.get_ops():
        if product.get_type_name() != "MatMul":
            continue
        matrix = product.input_value(0).get_node()
        if matrix.get_type_name() == "Constant" and matrix.get_element_type() == openvino.Type.f32:
            narrow = openvino.opset13.constant(matrix.data, dtype=openvino.Type.bf16)
            widened = openvino.opset13.convert(narrow, "f32")
            widened.get_rt_info()["decompression_0"] = ""
            product.input(0).replace_source_output(widened.output(0))


def quantized(converted: openvino.Model, calibration: Sequence[Tensor], settings: dict[str, Any]) -> openvino.Model:
    """OpenVINO's graph with int8 products (NNCF, post-training), its ranges read from ``calibration``.

    In a process of its own, which OpenVINO may end on some graphs (``quantize.py``). Raises BackendUnavailable.
    """
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(converted, Path(folder) / "whole.xml", compress_to_fp16=False)
        np.save(Path(folder) / "images.npy", torch.stack(list(calibration)).numpy())
        words = [sys.executable, "-m", "anyres.deploy.engines.quantize", folder, json.dumps(settings)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            died = done.returncode < 0 or not done.stderr.strip()
            why = f"it ended with {done.returncode}" if died else done.stderr.strip().splitlines()[-1]
            raise BackendUnavailable(f"openvino:int8: NNCF and OpenVINO cannot do this model here: {why}")
        return openvino_core().read_model(Path(folder) / "small.xml")


@cache
def openvino_core() -> openvino.Core:
    """The process's only core, kept to its end.

    Each core's CPU plugin (2026.4) makes itself a stack for signals, and restores the previous one when it goes. Of two
    that go in the order they came, the second restores what the first has freed, and the next signal (Ctrl-C, or a
    loader's worker that is done) ends the process.
    """
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    return openvino.Core()


OPENVINO = Engine(
    "openvino",
    build_openvino,
    ("fp32", "bf16", "int8"),
    devices=("cpu",),
    packages=("openvino",),
    int8_packages=("nncf",),
    own_threads=True,
)
