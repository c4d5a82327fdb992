"""The optimizer and its groups of parameters; ``anyres.training.schedule`` says at what rate they learn."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from anyres.training.schedule import OptimConfig

FUSED = ("adamw", "adam")
"""Those of torch's that update all parameters in one kernel, which leaves them alone where a step was not finite.
(SGD's fails in torch 2.15 where a parameter, such as DINO's last layer, has its first gradient later than others.)"""


def build_optimizer(model: nn.Module, config: OptimConfig, no_weight_decay: Collection[str]) -> Optimizer:
    """AdamW (or another of timm's) whose 1-D parameters, biases and the model's named exceptions do not decay.

    Frozen parameters (``requires_grad`` off) are left out. Each group says its share of the rate (``lr_scale``) and
    whether it ``decays``; ``set_rates`` reads both. With ``layer_decay`` a parameter's layer is what the model's
    ``group_matcher`` says: layer i of 0 to L learns at ``layer_decay`` ** (L - i).
    """
    if config.layer_decay < 1:
        biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
        exempt = {*no_weight_decay, *biases}
        groups = param_groups_layer_decay(model, config.weight_decay, exempt, layer_decay=config.layer_decay)
    else:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=no_weight_decay)
    for group in groups:
        group["decays"] = group["weight_decay"] > 0
        group.setdefault("lr_scale", 1.0)
    one_kernel = {"fused": True} if config.name in FUSED and all(p.is_cuda for p in model.parameters()) else {}
    optimizer: Optimizer = create_optimizer_v2(
        groups, config.name, lr=config.lr, eps=config.eps, betas=config.betas, **one_kernel
    )
    return optimizer


def set_rates(optimizer: Optimizer, rate: float, decay: float) -> None:
    """Give every group its share of the learning rate, and the weight decay to those that decay."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
        if group["decays"]:
            group["weight_decay"] = decay


def clip_each(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Scale down each gradient whose own L2 norm is above ``most``: times most / (norm + 1e-6), as DINO's code does."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_((most / (parameter.grad.norm() + 1e-6)).clamp(max=1.0))
