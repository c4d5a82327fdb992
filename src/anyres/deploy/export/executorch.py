"""A model as a program of ExecuTorch (.pte), for phones: for any height and width where its shapes can be lowered so,
else for one size. The caller resizes; the program normalizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.export import Dim

from anyres.config import UserError, first_line
from anyres.data.views import eval_view
from anyres.deploy.engines.exported import quiet
from anyres.deploy.export.certificate import Asked, Referee
from anyres.deploy.export.graph import Answering, called
from anyres.deploy.export.runtimes import Unable, running
from anyres.deploy.fuse.tracing import BUILDING
from anyres.flow import Size

SIDES = (33, 512)
"""The least and the most height and width of a program with free ones, in pixels."""
SAID = "anyres"
"""The method of a program that returns what is said of it, as JSON."""
_TRACED = (104, 80)


class Shown(nn.Module):
    """One image at the size that the model sees, uint8 (1, h, w, c) -> probabilities float32 (1, k)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, answering: Answering, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.answering = answering
        spread, center = torch.tensor(std, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * spread)).float().view(-1, 1, 1))  # as data.mix.normalize has them
        self.register_buffer("shift", (-center / spread).float().view(-1, 1, 1))

    def forward(self, image: UInt8[Tensor, "1 h w c"]) -> Float32[Tensor, "1 k"]:
        """See the class."""
        pixels = image.permute(0, 3, 1, 2).to(torch.float32)
        made: Tensor = self.answering(pixels * self.scale + self.shift)
        return made


def program(referee: Referee, size: Size | None, said: Mapping[str, Any]) -> bytes:
    """A program of one ``size`` in pixels, or of every height and width in ``SIDES``.

    XNNPACK runs what it can of it. The model is not folded: ExecuTorch (1.5) did not lower DeiT and DINO in that form.
    Raises UserError where it cannot do the model.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # type: ignore[import-not-found,unused-ignore]
            XnnpackPartitioner,
        )
        from executorch.exir import to_edge_transform_and_lower  # type: ignore[import-not-found,unused-ignore]

    how = referee.how
    shown = Shown(Answering(referee.model, referee.activation), how.mean, how.std).eval()
    image = torch.zeros(1, *(size or _TRACED), len(how.mean), dtype=torch.uint8)
    side = Dim.DYNAMIC(min=SIDES[0], max=SIDES[1])
    free = None if size else ({1: side, 2: side},)
    try:
        with BUILDING, torch.no_grad(), quiet():
            graph = torch.export.export(shown, (image,), dynamic_shapes=free)
            lowered = to_edge_transform_and_lower(
                graph, partitioner=[XnnpackPartitioner()], constant_methods={SAID: json.dumps(said)}
            )
            content: bytes = lowered.to_executorch().buffer
            return content
    except Exception as error:  # of an operation, or a shape it cannot follow
        at = "every size: give --sizes for programs of one size each" if size is None else f"{size} px: try --to onnx"
        raise UserError(f"ExecuTorch cannot lower {called(referee.model)} ({_cause(error)}) for {at}") from None


def _cause(error: BaseException) -> str:
    """What went wrong first: passes wrap it."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return first_line(error)


def open_executorch(path: Path, referee: Referee) -> Asked:
    """A program in ExecuTorch's own runtime; images are prepared as evaluation does, and asked one by one. Raises
    Unable."""
    with quiet():
        from executorch.runtime import Runtime  # type: ignore[import-not-found,unused-ignore]

    try:
        method = Runtime.get().load_program(path).load_method("forward")
        assert method is not None
        execute: Callable[[Sequence[Tensor]], Sequence[Tensor]] = method.execute
    except Exception as error:
        raise Unable(f"ExecuTorch cannot open {path.name}: {first_line(error)}") from None
    how = referee.how

    def ask(images: Tensor, size: Size) -> Tensor:
        found = []
        for image in images:
            view = eval_view(image.permute(2, 0, 1), size, how.crop, how.warps(size), how.interpolation)
            with running("ExecuTorch", path, size):
                (said,) = execute([view.permute(1, 2, 0)[None].contiguous()])
                found.append(said.clone())
        return torch.cat(found)

    return ask


def tried(sizes: Sequence[Size]) -> tuple[Size, ...]:
    """Where a program with free sides is tried: at ``sizes`` as far as it takes them, and at its bounds."""
    least, most = SIDES
    bounded = [Size(*(min(max(side, least), most) for side in size)) for size in sizes]
    return tuple(dict.fromkeys([*bounded, Size(least, least), Size(97, 210)]))
