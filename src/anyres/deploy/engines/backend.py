"""One model, made to run by each of several engines: eager PyTorch, its compiler, onnxruntime, OpenVINO.

``build`` returns a function from float32 pixels (b, 3, h, w) of one fixed shape to float32 logits (b, k). An engine
whose package is missing, or that cannot do the precision, says so in one line (Unavailable).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn

from anyres.config import UserError, nearest
from anyres.deploy.engines.huge_pages import use_huge_pages
from anyres.deploy.fuse.folded import Folded
from anyres.ops.kernels import check_triton, triton_here, use_triton

if TYPE_CHECKING:
    from anyres.deploy.engines.openvino_no_telemetry import openvino

Engine = Literal["eager", "inductor", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
Run = Callable[[Tensor], Tensor]
"""Float32 pixels (b, 3, h, w) of the shape it was built for -> float32 logits (b, k)."""

ENGINES, PRECISIONS = get_args(Engine), get_args(Precision)
OWN_THREADS = ("onnxruntime", "openvino")
"""Engines that do not use PyTorch's threads."""
MOST_PROGRAMS = 1024
"""So many shapes of one model's class are compiled in a process."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Unavailable(UserError):
    """This engine cannot run this model in this precision on this machine."""


@dataclass(frozen=True)
class Choice:
    """An engine and a precision, with Triton's kernels or without; written ``openvino:bf16``, ``eager+triton:bf16``."""

    engine: Engine
    precision: Precision
    kernels: bool = False

    def __str__(self) -> str:
        return f"{self.engine}{'+triton' if self.kernels else ''}:{self.precision}"

    @classmethod
    def parse(cls, text: str) -> Choice:
        """``openvino:bf16``, or an engine alone for fp32. Raises UserError."""
        engine, _, precision = text.partition(":")
        kernels = engine in ("eager+triton", "inductor+triton")
        engine = engine.removesuffix("+triton") if kernels else engine
        if engine not in ENGINES:
            raise UserError(f"backend {engine!r} is none of auto, {', '.join(ENGINES)}{nearest(engine, ENGINES)}")
        if (precision or "fp32") not in PRECISIONS:
            raise UserError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
        return cls(engine, precision or "fp32", kernels)  # type: ignore[arg-type]


def candidates(device: torch.device, precisions: Sequence[str]) -> list[Choice]:
    """What can run on ``device`` here, in those of fp32 and bf16 that are asked for and fast on it."""
    engines: list[Engine] = ["eager", "inductor"]
    if device.type == "cpu":
        engines += [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    found = [Choice(engine, p) for engine in engines for p in ("fp32", "bf16") if p in precisions]
    if device.type == "cuda" and triton_here():
        found += [replace(choice, kernels=True) for choice in found]
    return [c for c in found if c.precision == "fp32" or (has_bf16(device) and c.engine != "onnxruntime")]


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bf16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def build(
    model: nn.Module,
    choice: Choice,
    example: Float32[Tensor, "b 3 h w"],
    calibration: Sequence[Float32[Tensor, "_ 3 h w"]] = (),
    threads: int | None = None,
    tuned: bool = True,
) -> Run:
    """``model`` (in evaluation mode, float32) made ready for inputs of the shape of ``example``, on its device.

    ``calibration``: normalised real images of the example's height and width, from which int8's ranges are read.
    ``threads``: of the CPU (None: as many as PyTorch uses). ``tuned``: OpenVINO gets a batch in equal parts (except in
    int8), which run beside each other on cores of their own, not as one whole on all of them; and with it, or with
    onnxruntime, what this process has in memory is moved into huge pages. Raises Unavailable.
    """
    if choice.precision == "int8" and not calibration:
        raise Unavailable(f"{choice} needs some real images to read its ranges from: give calibration images")
    if choice.engine in ("onnxruntime", "openvino") and example.device.type != "cpu":
        raise Unavailable(f"{choice} runs on the CPU here: use eager or inductor for {example.device.type}")
    if choice.kernels:
        model = _with_kernels(model, choice, example.device)
    threads = threads or torch.get_num_threads()
    batches = _in_batches(calibration, len(example)) if choice.precision == "int8" else []
    match choice.engine:
        case "eager":
            return _eager(model, choice)
        case "inductor":
            return _inductor(model, choice, example)
        case "onnxruntime":
            run = _onnxruntime(model, choice, example, batches, threads)
        case "openvino":
            run = _openvino(model, choice, example, batches, threads, tuned)
    if tuned:
        run(example)  # takes the memory that a batch needs
        use_huge_pages()
    return run


def _with_kernels(model: nn.Module, choice: Choice, device: torch.device) -> nn.Module:
    """A copy that calls Triton's kernels."""
    try:
        check_triton(device)
    except UserError as error:
        raise Unavailable(f"{choice}: {error}") from None
    own = copy.deepcopy(model)
    if not use_triton(own):
        raise Unavailable(f"{choice}: no part of a {type(model).__name__} has a kernel")
    return own


def _in_batches(calibration: Sequence[Tensor], size: int) -> list[Tensor]:
    """All images in batches of ``size``, some twice where the last one would be smaller."""
    images = torch.cat(list(calibration))
    short = -len(images) % size
    whole = torch.cat([images, *[images] * (short // len(images)), images[: short % len(images)]])
    return list(torch.split(whole, size))


def _eager(model: nn.Module, choice: Choice) -> Run:
    if choice.precision == "int8":
        raise Unavailable(f"{choice}: PyTorch's eager mode has no int8 for these models: use openvino or onnxruntime")
    dtype = DTYPES[choice.precision]
    own = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:
        logits: Tensor = own(x.to(dtype))
        return logits.float()

    return run


def _inductor(model: nn.Module, choice: Choice, example: Tensor) -> Run:
    if choice.precision == "int8":
        raise Unavailable(f"{choice}: use openvino or onnxruntime")
    dtype = DTYPES[choice.precision]
    own = copy.deepcopy(model).to(dtype)
    options: dict[str, Any] = {"freezing": True} if example.device.type == "cpu" else {"triton.cudagraphs": True}
    compiled = torch.compile(own, dynamic=False, options=options)

    def run(x: Tensor) -> Tensor:
        # freezing wants no_grad, not inference_mode: the weights that it keeps are then ordinary tensors
        with torch.no_grad(), _quiet():
            logits: Tensor = compiled(x.to(dtype))
            return logits.to(torch.float32, copy=True)  # a CUDA graph's own answer is overwritten by the next

    try:
        # one program per shape is meant; beyond its limit (8 of one class) PyTorch would run eagerly, and not say so
        with torch._dynamo.config.patch(recompile_limit=MOST_PROGRAMS):
            run(example)
    except Exception as error:  # whatever the compiler raises, such as a missing C++ compiler
        raise Unavailable(f"{choice}: {_line(error)}") from None
    return run


def exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """``model`` as a graph for inputs of the shape of ``example``. Raises Unavailable."""
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(model, (example,))
    except Exception as error:
        raise Unavailable(f"{type(model).__name__} cannot be exported: {_line(error)}") from None


def _onnxruntime(model: nn.Module, choice: Choice, example: Tensor, calibration: Sequence[Tensor], threads: int) -> Run:
    if choice.precision == "bf16":
        raise Unavailable(f"{choice}: onnxruntime has no bf16 on CPUs: use openvino or inductor")
    _need("onnxruntime", "onnx", "onnxscript")
    import onnxruntime

    with _quiet():
        program = torch.onnx.export(exported(model, example), dynamo=True, verbose=False)
    assert program is not None
    proto = program.model_proto
    if choice.precision == "int8":
        proto = _quantized(proto, calibration)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run


def _quantized(proto: Any, calibration: Sequence[Tensor]) -> Any:
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
        quant_pre_process(whole, ready, skip_symbolic_shape=True)  # folds what is constant
        kinds = ["Conv", "MatMul", "Gemm"]
        quantize_static(ready, small, Reader(), QuantFormat.QDQ, per_channel=True, op_types_to_quantize=kinds)
        return onnx.load(small)


def _openvino(
    model: nn.Module, choice: Choice, example: Tensor, calibration: Sequence[Tensor], threads: int, split: bool
) -> Run:
    """By as many streams as divide both batch and threads: presumably cores on one batch wait for each other often."""
    _need("openvino", *(["nncf"] if choice.precision == "int8" else []))
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    # not int8: ResMLP's answers, its ranges read from an image at a time, were 2.9 of their norm away
    streams = math.gcd(len(example), threads) if split and choice.precision != "int8" else 1
    example = example[: len(example) // streams]
    program = exported(model, example)  # OpenVINO reads its tensors where they lie, until it has compiled them
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # beside int8's products the rest is computed in bf16 where that is fast
        "INFERENCE_PRECISION_HINT": "f32" if choice.precision == "fp32" or not has_bf16(example.device) else "bf16",
    }
    with _quiet():
        converted = openvino.convert_model(program)
        converted.reshape(list(example.shape))  # it comes with free sides, for which plans are made with more copies
        if choice.precision == "int8":
            converted = _in_int8(converted, calibration, settings)
        if settings["INFERENCE_PRECISION_HINT"] == "bf16" and isinstance(model, Folded):  # peers: as OpenVINO does it
            _keep_narrow(converted)
        compiled = _openvino_core().compile_model(converted, "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(streams)]

    def run(x: Tensor) -> Tensor:
        for request, part in zip(requests, np.split(x.numpy(), streams), strict=True):
            request.start_async([part], share_inputs=True)
        for request in requests:
            request.wait()
        return torch.from_numpy(np.concatenate([request.get_output_tensor().data for request in requests]))

    return run


def _keep_narrow(graph: openvino.Model) -> None:
    """Matrices that are multiplied with what is computed become bf16, for plans in bf16.

    A layer's weights do so by themselves. A matrix on the left, as that which mixes tokens or heads, stays float32
    (2026.4), and with it the whole product; narrowed, and marked as widened for storage only, it stays bf16.
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


def _in_int8(converted: openvino.Model, calibration: Sequence[Tensor], settings: dict[str, Any]) -> openvino.Model:
    """OpenVINO's graph with int8 products (NNCF, post-training), its ranges read from ``calibration``."""
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(converted, Path(folder) / "whole.xml", compress_to_fp16=False)
        np.save(Path(folder) / "images.npy", torch.stack(list(calibration)).numpy())
        words = [sys.executable, "-m", "anyres.deploy.engines.quantize", folder, json.dumps(settings)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            died = done.returncode < 0 or not done.stderr.strip()
            why = f"it ended with {done.returncode}" if died else done.stderr.strip().splitlines()[-1]
            raise Unavailable(f"openvino:int8: NNCF and OpenVINO cannot do this model here: {why}")
        return _openvino_core().read_model(Path(folder) / "small.xml")


@cache
def _openvino_core() -> openvino.Core:
    """One for the process, kept to its end. Each one's CPU plugin (2026.4) makes itself a stack for signals, and puts
    the one before it back when it goes: of two that go in the order they came, the second puts back what the first has
    freed, and the next signal (Ctrl-C, a loader's worker that is done) ends the process."""
    from anyres.deploy.engines.openvino_no_telemetry import openvino

    return openvino.Core()


def _need(*packages: str) -> None:
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    if missing:
        raise Unavailable(f"{missing[0]} is not installed: pip install 'anyres[deploy]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters' remarks about themselves are not for our users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
