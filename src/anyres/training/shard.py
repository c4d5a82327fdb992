"""A model whose parameters are split over all processes (FSDP2), and what puts them together again.

Every process keeps its share of each parameter, of its gradient, its optimiser state and its moving average; the
layers at work are put together for as long as they are needed.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def shard(module: nn.Module, device: torch.device) -> None:
    """Split the parameters of ``module``, alike on every process, over all of them: each member of its lists of blocks
    by itself, the rest together. It must be called as a whole, as ``module(...)``."""
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # none is written to
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for blocks in [part for part in module.modules() if isinstance(part, nn.ModuleList)]:
        for block in blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)  # also where no backward pass follows


def whole(tensor: Tensor) -> Tensor:
    """A split tensor put together, by all processes at once; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_nest(nest: Any) -> Any:
    """A nest of dictionaries and lists whose split tensors are put together, in the memory of the processor."""
    if isinstance(nest, DTensor):
        return whole(nest).cpu()
    if isinstance(nest, dict):
        return {key: whole_nest(value) for key, value in nest.items()}
    return [whole_nest(value) for value in nest] if isinstance(nest, list) else nest


def split_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's share of a whole ``tensor``, if ``other`` is split; else the tensor itself."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def load_model(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a module, split or not. Raises RuntimeError where they do not fit."""
    ours = module.state_dict()
    module.load_state_dict({key: split_like(tensor, ours.get(key, tensor)) for key, tensor in state.items()})


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a whole state into the optimiser of a model, split or not. Raises ValueError where it does not fit."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(isinstance(parameter, DTensor) for parameter in parameters) and len(state["state"]) <= len(parameters):
        state = {**state, "state": {i: _split_all(of, parameters[i]) for i, of in state["state"].items()}}
    optimizer.load_state_dict(state)


def _split_all(values: dict[str, Any], other: Tensor) -> dict[str, Any]:
    return {key: split_like(value, other) if isinstance(value, Tensor) else value for key, value in values.items()}


@torch.no_grad()
def fill(twin: nn.Module, module: nn.Module) -> None:
    """Give ``twin``, which is not split, the values of ``module``, which is."""
    for mine, its in zip(twin.state_dict().values(), module.state_dict().values(), strict=True):
        mine.copy_(whole(its))
