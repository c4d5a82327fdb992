"""Exported files, opened by the engines that will run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from anyres.config import UserError, first_line
from anyres.deploy.engines.exported import quiet
from anyres.deploy.engines.openvino import openvino_core
from anyres.deploy.export.certificate import Asked
from anyres.flow import Size


class Unable(UserError):
    """An engine that cannot open a file."""


def open_onnxruntime(path: Path) -> Asked:
    """An ONNX file in onnxruntime on the CPU. Raises Unable."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever its C++ code says
        raise Unable(f"onnxruntime cannot open {path.name}: {first_line(error)}") from None
    dial = len(session.get_inputs()) > 1

    def ask(images: Tensor, size: Size) -> Tensor:
        given = {"image": images.numpy()} | ({"size": torch.tensor(size).numpy()} if dial else {})
        with running("onnxruntime", path, size):
            return torch.from_numpy(session.run(None, given)[0])

    return ask


def open_openvino(path: Path) -> Asked:
    """An ONNX file, or OpenVINO's own (.xml), in OpenVINO on the CPU, in float32. Raises Unable."""
    try:
        with quiet():
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
            compiled = openvino_core().compile_model(openvino_core().read_model(path), "CPU", settings)
    except Exception as error:  # the last line names what it cannot do
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1].lstrip("- ")
        raise Unable(f"OpenVINO cannot open {path.name}: {last}") from None
    dial = len(compiled.inputs) > 1

    def ask(images: Tensor, size: Size) -> Tensor:
        given = {"image": images.numpy()} | ({"size": torch.tensor(size).numpy()} if dial else {})
        with running("OpenVINO", path, size):
            return torch.from_numpy(compiled(given)[0].copy())

    return ask


def open_torch(path: Path) -> Asked:
    """A program of torch.export. Raises Unable."""
    try:
        module: Callable[..., Tensor] = torch.export.load(path).module()
    except Exception as error:
        raise Unable(f"PyTorch cannot open {path.name}: {first_line(error)}") from None

    @torch.inference_mode()
    def ask(images: Tensor, size: Size) -> Tensor:
        with running("PyTorch", path, size):
            return module(images, torch.tensor(size))

    return ask


@contextmanager
def running(engine: str, path: Path, size: Size) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever an engine says of a size or an operation
        raise Unable(f"{engine} cannot run {path.name} at {size} px: {first_line(error)}") from None
