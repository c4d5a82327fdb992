"""An engine of your own: eager PyTorch with its tensors channels last.

    python examples/new_engine.py predict runs/mine photo.jpg --backend channels_last:bf16

``--backend auto`` then measures it beside the others.
"""

import copy

import torch
from torch import Tensor

import anyres
from anyres.deploy.engines.engine import DTYPES, BuildSpec, Engine, Runner


def build_channels_last(spec: BuildSpec) -> Runner:
    dtype = DTYPES[spec.precision]
    model = copy.deepcopy(spec.model).to(dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(x: Tensor) -> Tensor:  # float32 (b, c, h, w) -> float32 (b, k)
        answer: Tensor = model(x.to(dtype=dtype, memory_format=torch.channels_last))
        return answer.float()

    return run


anyres.register_engine(Engine("channels_last", build_channels_last, precisions=("fp32", "bf16")))


if __name__ == "__main__":
    from anyres.cli import main

    main()
