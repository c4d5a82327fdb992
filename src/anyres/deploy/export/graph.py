"""A model as an ONNX graph: with the dial in front and a free size, or for one size alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.export import Dim

from anyres.config import UserError, first_line
from anyres.deploy.engines.exported import quiet
from anyres.deploy.export.dial import Dial, Preparation
from anyres.deploy.fuse import fuse
from anyres.deploy.fuse.tracing import BUILDING, tracing_for_cpu
from anyres.flow import Size
from anyres.models.contract import Backbone

if TYPE_CHECKING:
    import onnx

Activation = Literal["softmax", "sigmoid", "none"]
"""What makes probabilities of the model's output."""
OUTPUT = {"softmax": "probabilities", "sigmoid": "probabilities", "none": "output"}
TRACED = (104, 80)  # pixels, at least two tokens of every family a side; any other size is as good


class Answering(nn.Module):
    """A model with its activation: normalized pixels float32 (b, c, h, w) -> probabilities float32 (b, k)."""

    def __init__(self, model: nn.Module, activation: Activation) -> None:
        super().__init__()
        self.model, self.activation = model, activation

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """See the class."""
        made: Tensor = self.model(pixels)
        if self.activation == "softmax":
            return made.softmax(1)
        return made.sigmoid() if self.activation == "sigmoid" else made


class Whole(nn.Module):
    """Dial and model in one: images uint8 (b, h, w, c), a size int64 (2,) -> probabilities float32 (b, k)."""

    def __init__(self, dial: Dial, answering: Answering) -> None:
        super().__init__()
        self.dial, self.answering = dial, answering

    def forward(self, image: UInt8[Tensor, "b h w c"], size: Int64[Tensor, " 2"]) -> Float[Tensor, "b k"]:
        """See the class."""
        made: Tensor = self.answering(self.dial(image, size))
        return made


def free_graph(model: Backbone, how: Preparation, activation: Activation) -> onnx.ModelProto:
    """Inputs ``image`` uint8 (b, h, w, c) and ``size`` int64 (2,), height and width; every dimension free.

    Raises UserError.
    """
    return _joined(_dial_graph(how), _model_graph(model, activation, len(how.mean)), activation)


def fixed_graph(model: Backbone, how: Preparation, activation: Activation, size: Size) -> onnx.ModelProto:
    """Input ``image`` uint8 (b, h, w, c), of any size; the model, folded for it, sees ``size`` alone. Raises
    UserError."""
    from onnx import numpy_helper

    dial = _dial_graph(how)
    kept = [each for each in dial.graph.input if each.name != "size"]
    del dial.graph.input[:]
    dial.graph.input.extend(kept)
    dial.graph.initializer.append(numpy_helper.from_array(np.array(size, dtype=np.int64), "size"))
    return _joined(
        dial, _model_graph(fuse(model, (size.height, size.width)), activation, len(how.mean), size), activation
    )


def program(model: Backbone, how: Preparation, activation: Activation) -> torch.export.ExportedProgram:
    """The same as ``free_graph``, as PyTorch's own. Raises UserError."""
    inputs = (torch.zeros(2, 150, 120, len(how.mean), dtype=torch.uint8), torch.tensor(TRACED))
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    whole = Whole(Dial(how), Answering(model, activation)).eval()
    try:
        with BUILDING, torch.no_grad(), quiet():
            return torch.export.export(whole, inputs, dynamic_shapes=(free, None))
    except Exception as error:  # of a model that branches on its size
        raise UserError(f"{called(model)} cannot be written for PyTorch: {first_line(error)}: try --to onnx") from None


def called(model: nn.Module) -> str:
    """What messages call a model."""
    return model.called if isinstance(model, Backbone) else type(model).__name__


def _dial_graph(how: Preparation) -> onnx.ModelProto:
    import onnx

    return onnx.load_from_string(_dial_bytes(how))


@lru_cache(maxsize=4)
def _dial_bytes(how: Preparation) -> bytes:
    """The graph of the dial, made once for all files with the same preparation."""
    from onnx import compose

    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    image = torch.zeros(2, 150, 120, len(how.mean), dtype=torch.uint8)
    made = _traced(Dial(how), (image, torch.tensor(TRACED)), (free, None), ["image", "size"], "the dial")
    whole: bytes = compose.add_prefix(made, "dial/", rename_inputs=False).SerializeToString()
    return whole


def _model_graph(model: nn.Module, activation: Activation, channels: int, size: Size | None = None) -> onnx.ModelProto:
    free = {0: Dim.DYNAMIC} if size else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    pixels = torch.zeros(2, channels, *(size or TRACED))
    with tracing_for_cpu(size is not None):
        return _traced(Answering(model, activation), (pixels,), (free,), ["pixels"], called(model))


def _traced(
    module: nn.Module, inputs: tuple[Tensor, ...], free: tuple[object, ...], names: Sequence[str], name: str
) -> onnx.ModelProto:
    try:
        with BUILDING, torch.no_grad(), quiet():
            graph = torch.export.export(module.eval(), inputs, dynamic_shapes=free)
            made = torch.onnx.export(graph, input_names=names, dynamo=True, verbose=False)
    except Exception as error:  # an operation of another package's model, or a branch on its size
        raise UserError(f"{name} cannot be written as ONNX: {first_line(error)}: try --to safetensors") from None
    assert made is not None
    return made.model_proto


def _joined(dial: onnx.ModelProto, model: onnx.ModelProto, activation: Activation) -> onnx.ModelProto:
    """One graph of two; what the first answers is what the second is given."""
    from onnx import compose, helper

    graph = compose.merge_graphs(dial.graph, model.graph, io_map=[(dial.graph.output[0].name, "pixels")])
    graph.name = "image to probabilities"
    opsets = {each.domain: each.version for each in (*dial.opset_import, *model.opset_import)}
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, number) for domain, number in opsets.items()],
        functions=list(model.functions),
        ir_version=min(dial.ir_version, model.ir_version),
        producer_name="anyres",
    )
    _name_output(made.graph, OUTPUT[activation])
    for value, dims in ((made.graph.input[0], ("batch", "height", "width")), (made.graph.output[0], ("batch",))):
        for place, name in enumerate(dims):
            value.type.tensor_type.shape.dim[place].dim_param = name
    del made.graph.value_info[:]  # of both halves, under two names for one free side
    return made


def _name_output(graph: onnx.GraphProto, name: str) -> None:
    old, graph.output[0].name = graph.output[0].name, name
    for node in graph.node:
        for names in (node.input, node.output):
            for place, each in enumerate(names):
                if each == old:
                    names[place] = name
