"""Whether a step was finite, without waiting for the device: the update is taken back there, the host hears it later.

A GPU computes behind the host. A host that asks for a number waits until all that was queued before is done, and the
GPU then waits for the host. So the answer is copied to the host as soon as it is known there, and read when the next
step has queued its forward and backward passes. A CPU has nothing to wait for: it answers at once, before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.optim import Optimizer

from anyres.training.shard import local
from anyres.training.state import State


def reads_late(device: torch.device) -> bool:
    """Whether the host would wait for ``device`` where it asks for a number."""
    return device.type == "cuda"


class Reading:
    """A truth value on its way from the device to the host."""

    def __init__(self, value: Tensor) -> None:
        on_cuda = value.device.type == "cuda"
        kept = torch.empty((), dtype=torch.bool, pin_memory=on_cuda)
        self._kept = kept.numpy()  # the same memory
        kept.copy_(value.detach(), non_blocking=True)
        self._event = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
        if self._event is not None:
            self._event.record()

    def value(self) -> bool:
        """What it is; waits only for what was queued before it was taken."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._kept)


class Verdict:
    """Whether step ``step`` was finite, and what the host then has to take back: ``undo``.

    ``index`` (b,) names the batch's positions in the data set.
    """

    def __init__(self, step: int, index: Tensor, finite: Tensor, undo: Callable[[], None]) -> None:
        self.step, self.index = step, index
        self._reading, self._undo = Reading(finite), undo

    def is_finite(self) -> bool:
        """The answer; where it is no, the host's share of the update has been taken back too. To be asked once."""
        finite = self._reading.value()
        if not finite:
            self._undo()
        return finite


def plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, where accelerate has wrapped it."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def update_if(finite: Tensor, state: State, update: Callable[[], None]) -> Callable[[], None]:
    """Make ``update``; where ``finite`` is false, all of ``state`` that lies on the device is as it was before.

    A fused optimizer of torch's leaves parameters and its own numbers alone by itself (``found_inf``); of any other,
    and of moving averages and copies, the tensors are kept and put back. Returns what takes back the host's share, the
    counters of the optimizer: to be called before the next update, if ``finite`` has turned out to be false.
    """
    optimizer = plain(state.optimizer)
    is_fused = all(group.get("fused") for group in optimizer.param_groups)
    others = [module for name, module in state.modules.items() if name != "model"]
    held = [local(tensor) for module in others for tensor in module.state_dict().values()]
    if not is_fused:
        held += [local(p.detach()) for group in optimizer.param_groups for p in group["params"]]
        numbers = (value for values in optimizer.state.values() for value in values.values())
        held += [local(n) for n in numbers if isinstance(n, Tensor) and n.device == finite.device]
    before = [tensor.clone() for tensor in held]
    undo = _keep_counters(optimizer, finite.device)
    if is_fused:
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler does
    try:
        update()
    finally:
        if is_fused:
            del optimizer.found_inf  # type: ignore[attr-defined]
    put_back(finite, held, before)
    return undo


@torch.no_grad()
def put_back(finite: Tensor, tensors: Iterable[Tensor], before: Iterable[Tensor]) -> None:
    """Give ``tensors`` their values of ``before`` where ``finite`` is false; nothing is read."""
    for tensor, kept in zip(tensors, before, strict=True):
        torch.where(finite, tensor, kept, out=tensor)


def _keep_counters(optimizer: Optimizer, device: torch.device) -> Callable[[], None]:
    """What gives the optimizer back the numbers that it keeps on the host, and parameters without any their none."""
    groups = [{key: _own(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    counters = {
        parameter: {
            key: _own(value)
            for key, value in values.items()
            if not (isinstance(value, Tensor) and value.device == device)
        }
        for parameter, values in optimizer.state.items()
    }

    def undo() -> None:
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            for key in [key for key in group if key != "params" and key not in kept]:
                del group[key]
            group.update(kept)
        for parameter in list(optimizer.state):
            if parameter not in counters:
                del optimizer.state[parameter]
            else:
                optimizer.state[parameter].update(counters[parameter])

    return undo


def _own(value: object) -> object:
    """A copy of a tensor, which would be changed in place; anything else as it is."""
    return value.clone() if isinstance(value, Tensor) else value
