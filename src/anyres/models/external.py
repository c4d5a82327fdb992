"""What the wrappers of other libraries' models share: their members, which modules attend, which sizes are taken."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyres.config import first_line
from anyres.models.contract import Backbone

Size = tuple[int, int]
"""Height and width in pixels."""
ATTENTION = re.compile(r"Attention|Attn")
PROJECTIONS = ("qkv", "q", "kv", "q_proj")
"""An attention module of timm's is called so and has one of these layers; channel attention has none."""


def share_members(wrapper: nn.Module, name: str, model: nn.Module) -> None:
    """Keep ``model`` under ``name`` with its parameters, buffers and children as the wrapper's own.

    They are the same dictionaries, so what is replaced in one is replaced in the other, and keys have no prefix.
    """
    vars(wrapper)[name] = model  # not a child: that would be another prefix
    for members in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        vars(wrapper)[members] = vars(model)[members]


def attention_in(model: nn.Module) -> list[nn.Module]:
    """The attention modules of a foreign model: see ATTENTION and PROJECTIONS."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        or (ATTENTION.search(type(module).__name__) and any(name in module._modules for name in PROJECTIONS))
    ]


@torch.no_grad()
def size_fault(model: Backbone, name: str, size: Size) -> str:
    """What is wrong with a size, tried with an empty image, in one line; empty if nothing is."""
    error = _fails(model, size)
    if error is None:
        return ""
    height, width = model.pretrained_cfg["input_size"][1:]
    own = px_text((height, width))
    if all(_fails(model, other) for other in ((height + 64, width + 64), (2 * height, 2 * width))):
        return (
            f"{name} takes images of one size only, {own} px, not {px_text(size)} px: give that size, or build it for "
            "another with model.img_size"
        )
    return f"{name} cannot take images of {px_text(size)} px ({first_line(error)}): give {own} px, its own size"


@torch.no_grad()
def contract_fault(model: Backbone, name: str, size: Size) -> str:
    """What training misses, in one line: a pooled vector of which the classifier makes the logits."""
    with evaluating(model):
        x = empty_image(model, size) + 0.5
        try:
            logits = model(x)
            made = model.get_classifier()(model.forward_head(model.forward_features(x), pre_logits=True))
            holds = made.shape == logits.shape and torch.allclose(made, logits, rtol=1e-3, atol=1e-4)
        except Exception:  # whatever a foreign head raises
            holds = False
    return "" if holds else f"{name} cannot be trained here: its logits are not one classifier's of one pooled vector"


def _fails(model: Backbone, size: Size) -> Exception | None:
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said again where the model is used
        try:
            model(empty_image(model, size))
        except Exception as error:  # whatever a foreign model raises at a size that it does not take
            return error
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is as it was."""
    before, modes = model.training, [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(before)
        for module, mode in modes:
            module.training = mode


def empty_image(model: Backbone, size: Size) -> Float[Tensor, "1 k h w"]:
    """On the model's device, in its dtype."""
    like = next(model.parameters())
    return like.new_zeros(1, model.pretrained_cfg["input_size"][0], *size)


def px_text(size: Size) -> str:
    """As people write it."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"
