"""int8 in an exported file: its products and convolutions in whole numbers, ranges read at the mix of sizes it will
see."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from anyres.config import UserError, first_line
from anyres.flow import Size

if TYPE_CHECKING:
    import onnx

_KINDS = ("Conv", "Gemm", "MatMul")


def quantized(
    graph: onnx.ModelProto, images: Sequence[UInt8[Tensor, "c _ _"]], sizes: Sequence[Size]
) -> onnx.ModelProto:
    """An exported graph in int8, but for what prepares the image and what follows from its shape alone.

    Ranges are read from ``images``, one after the other, each at the next of ``sizes``, if the graph has the dial.
    Raises UserError.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    given = _given(images, sizes if len(graph.graph.input) > 1 else ())

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(given, None)

    ready = onnx.ModelProto()
    ready.CopyFrom(graph)
    for number, node in enumerate(ready.graph.node):
        node.name = node.name or f"node {number}"
    add_pre_process_metadata(ready)  # which torch.export did: without the mark it is recommended
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.onnx"
        try:
            quantize_static(
                ready,
                small,
                Reader(),
                QuantFormat.QDQ,
                op_types_to_quantize=list(_KINDS),
                per_channel=True,
                nodes_to_exclude=_kept(ready.graph),
            )
        except Exception as error:  # whatever it says of an operation
            raise UserError(
                f"onnxruntime cannot make int8 of this model ({first_line(error)}): leave --int8 out"
            ) from None
        return onnx.load(small)


def _given(images: Sequence[UInt8[Tensor, "c _ _"]], sizes: Sequence[Size]) -> Iterator[dict[str, NDArray[Any]]]:
    for number, image in enumerate(images):
        pixels = {"image": image.permute(1, 2, 0)[None].contiguous().numpy()}
        yield pixels | ({"size": np.array(sizes[number % len(sizes)], dtype=np.int64)} if sizes else {})


def _kept(graph: onnx.GraphProto) -> list[str]:
    """Products that stay in float32: of the dial, whose gray levels are exact, and those with a factor that follows
    from the size alone (a resampled table or mixing matrix), whose range no image tells."""
    weights = {each.name for each in graph.initializer}
    seen = {"image"}
    kept = []
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and seen.intersection(node.input):
            seen.update(node.output)
        factors = [each for each in node.input[:2] if each not in weights]
        if node.op_type in _KINDS and (node.name.startswith("dial/") or not seen.issuperset(factors)):
            kept.append(node.name)
    return kept
