"""One process or many: accelerate decides; torchrun and ``accelerate launch`` both work."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anyres.config import UserError
from anyres.flow import has_bf16, pick_device
from anyres.training.plan import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_accelerator(precision: Precision) -> Accelerator:
    """An Accelerator on ``pick_device``'s. ``auto`` is bf16 autocast where the chip multiplies bf16 natively."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    device, world = pick_device(), int(os.environ.get("WORLD_SIZE") or 1)
    numbered = ":" in str(device)
    if numbered and world > 1:
        raise UserError(f"device {device} is one, and {world} processes run: leave it out, each takes its own")
    dtype = autocast_dtype(precision)
    mixed = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    # DDP remarks on a gradient's strides along axes of length 1; that is no loss.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    if AcceleratorState._shared_state:  # an earlier run of this process may have had another precision
        moved = world == 1 and PartialState().device.type != device.type
        AcceleratorState._reset_state(reset_partial_state=moved or numbered)
    if not numbered:
        return Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    torch.cuda.set_device(device)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        return Accelerator(mixed_precision=mixed)
    finally:
        del os.environ["ACCELERATE_TORCH_DEVICE"]


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The dtype matrix products are made in; None: float32 throughout."""
    if precision == "auto":
        return torch.bfloat16 if has_bf16(pick_device()) else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def check_alike(accelerator: Accelerator, step: int, run: Path) -> None:
    """Raises UserError, on every process, unless all have come to the same step."""
    if accelerator.num_processes > 1:
        steps: list[int] = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise UserError(
                f"the processes found {run} at different steps ({', '.join(map(str, steps))}): "
                "--out must lie on storage that all machines share"
            )


def gather_uneven(accelerator: Accelerator, local: Tensor) -> Tensor:
    """The rows of all processes, (n, ...) -> (m, ...); where n differs, each part filled up to the longest, with -1."""
    whole = local.long() if local.dtype == torch.bool else local  # padding with -1 would change a bool's type
    padded: Tensor = accelerator.gather(accelerator.pad_across_processes(whole, pad_index=-1))
    return padded.to(local.dtype)


def restart_advice() -> str:
    """What to do so that torchrun can start several machines again after one has failed; empty if nothing."""
    machines, restarts = (int(os.environ.get(name, "0")) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if machines > 1 and restarts and os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        return (
            "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every machine before torchrun: without it a restart may "
            "read old addresses and fail (pytorch issue 135712)"
        )
    return ""


def synchronize_batch_norm(model: nn.Module) -> None:
    """With several processes, batch statistics over the global batch, so that the split does not change the training.

    Each BatchNorm2d of ``model`` is replaced by one with the same keys; torch's own SyncBatchNorm needs a GPU.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    replace = nn.SyncBatchNorm.convert_sync_batchnorm if pick_device().type == "cuda" else GlooBatchNorm
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, replace(child))


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:  # noqa: ARG004
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class GlooBatchNorm(nn.Module):
    """BatchNorm2d over the batch of all processes by a differentiable all-reduce of sum and sum of squares."""

    def __init__(self, source: nn.BatchNorm2d) -> None:
        super().__init__()
        if source.momentum is None or source.running_mean is None or source.running_var is None:
            raise ValueError("only batch norm with an affine and a moving average is synchronised")
        self.eps, self.momentum = source.eps, source.momentum
        self.weight, self.bias = source.weight, source.bias
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(source, name))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h, w), normalised by the statistics of every process's batch while training."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        wide = x.float()
        count = wide.new_full((1,), wide.numel() / wide.shape[1])
        local = torch.cat([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count])
        sums: Tensor = SumOverProcesses.apply(local)
        c, n = wide.shape[1], sums[-1]
        mean = sums[:c] / n
        variance = sums[c : 2 * c] / n - mean.square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        out: Tensor = (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
        return out
