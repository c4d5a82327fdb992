"""A model whose parameters are split over all processes (FSDP2), and how it is gathered and restored.

Every process keeps its share of each parameter, of its gradient, its optimizer state and its moving average; a layer is
gathered while it computes. Of checkpoints only the first process holds the whole, in the memory of the CPU.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:  # what splits takes two seconds to import, and most runs split nothing
    from torch.distributed.tensor import DTensor

Read = Callable[[], dict[str, Any]]
"""Reads a state from disk. Of a sharded model only the first process calls it."""


def shard(module: nn.Module, device: torch.device) -> None:
    """Split the parameters of ``module``, alike on every process, over all of them.

    Each member of its lists of blocks is a unit of its own, the rest is another. The module must be called as a whole,
    as ``module(...)``.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)  # none is written to
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for blocks in [part for part in module.modules() if isinstance(part, nn.ModuleList)]:
        for block in blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)  # also where no backward pass follows


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each process holds a share of it. Where torch's module for that is not imported, none does."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(module: nn.Module) -> bool:
    return any(map(is_split, module.parameters()))


def whole(tensor: Tensor) -> Tensor:
    """A split tensor gathered, by all processes at once; any other as it is."""
    return tensor.full_tensor() if is_split(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Of a split tensor this process's share; any other as it is."""
    return tensor.to_local() if is_split(tensor) else tensor


def gather_full_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of ``module``; of a sharded one, by all processes at once: whole on the first, {} on the others."""
    if not is_sharded(module):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    gathered = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {key: tensor for key, tensor in gathered.items() if isinstance(tensor, Tensor)}


def gather_optimizer_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state of the ``optimizer`` of ``module``, as ``Optimizer.state_dict`` gives it, parameters by number.

    Of a sharded module by all processes at once: whole on the first, {} on the others.
    """
    if not (is_sharded(module) and optimizer.state):  # torch fills an empty state by making a step
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    on_first = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_optimizer_state_dict(module, optimizer, options=on_first)
    if not state:
        return {}
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: values for name, values in state["state"].items()}, "param_groups": groups}


def load_full_state(module: nn.Module, read: Read) -> None:
    """Load the whole tensors that ``read`` returns into ``module``. Raises RuntimeError where they do not fit."""
    if not is_sharded(module):
        module.load_state_dict(read())
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state, shapes = _read_on_first(read, lambda state: {key: tensor.shape for key, tensor in state.items()})
    ours = module.state_dict()
    for key in ours.keys() | shapes.keys():
        if key not in ours or key not in shapes or ours[key].shape != shapes[key]:
            raise RuntimeError(f"{key} has the shape {shapes.get(key)} there")
    from_first = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, state, options=from_first)


def load_optimizer_state(module: nn.Module, optimizer: Optimizer, read: Read) -> None:
    """Load the whole state that ``read`` returns into the ``optimizer`` of ``module``.

    Raises ValueError where it does not fit. torch's ``set_optimizer_state_dict`` is not used: it makes up a state for
    parameters that had no gradient yet, such as DINO's last layer in its first epoch, so a resumed run would differ.
    """
    if not is_sharded(module):
        optimizer.load_state_dict(read())
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state, outline = _read_on_first(read, _outline)
    if any(number >= len(parameters) for number in outline["state"]):
        raise ValueError(f"its optimizer has the state of more than {len(parameters)} parameters")
    shares: dict[int, dict[str, Any]] = {}
    for number, values in outline["state"].items():
        there = state["state"][number] if state else values
        shares[number] = {key: _share(there[key], value, parameters[number]) for key, value in values.items()}
    optimizer.load_state_dict({**outline, "state": shares})


def _read_on_first(
    read: Read, outline: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``read`` returns, on the first process, and its ``outline`` on all; what it raises is raised on all."""
    state: dict[str, Any] = {}
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            state = read()
            told = [outline(state)]
        except Exception as error:  # the others must not wait for ever
            told = [error]
    dist.broadcast_object_list(told)
    if isinstance(told[0], Exception):
        raise told[0]
    return state, told[0]


def _outline(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with tensors that have a shape and no memory."""
    return {
        **state,
        "state": {
            number: {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in values.items()}
            for number, values in state["state"].items()
        },
    }


def _share(there: Any, outline: Any, parameter: Tensor) -> Any:
    """This process's share of a value that the first process holds as ``there``: split as ``parameter`` is if it has
    its shape, else whole."""
    if not isinstance(outline, Tensor):
        return outline
    tensor = there if dist.get_rank() == 0 else torch.empty_like(outline, device="cpu")
    tensor = tensor.to(parameter.device)
    if is_split(parameter) and tensor.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    dist.broadcast(tensor, 0)
    return tensor.cpu()  # the optimizer moves what belongs on the device


@torch.no_grad()
def copy_full(replica: nn.Module, module: nn.Module) -> None:
    """Give ``replica``, which is not sharded, the values of ``module``, which is: by all processes at once."""
    for mine, its in zip(replica.state_dict().values(), module.state_dict().values(), strict=True):
        mine.copy_(whole(its))
