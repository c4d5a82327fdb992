"""Every family at a size for quick tests, and each one's smallest official model."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyres.models import create_model
from anyres.models.contract import Backbone


class Small(NamedTuple):
    name: str
    options: dict[str, Any]
    stride: int
    """Pixels per token of the last features."""
    specials: int
    """Class tokens before the patches; 0: pooled by average."""


_VIT = {"dim": 64, "depth": 4, "heads": 2, "patch_size": 8, "img_size": 64}
SMALL = {
    "rest": Small("rest_lite", {"dims": (16, 32, 64, 128)}, 32, 0),
    "restv2": Small("restv2_nano", {}, 32, 0),
    "resformer": Small("resformer_nano", {}, 8, 1),
    "resmlp": Small("resmlp_nano", {"any_size": True}, 8, 0),
    "deit": Small("deit_tiny_patch16_224", _VIT, 8, 1),
    "deit_distilled": Small("deit_tiny_distilled_patch16_224", _VIT, 8, 2),
    "deit3": Small("deit_tiny_patch16_LS", _VIT, 8, 1),
    "threethings": Small("deit_small_patch16_18x2", _VIT, 8, 1),
    "hmlp": Small("deit_tiny_patch16_LS", _VIT | {"patch_size": 16, "stem": "hmlp"}, 16, 1),
    "cait": Small("cait_XXS24_224", _VIT, 8, 1),
    "patchconvnet": Small("S60", {"dim": 64, "depth": 4}, 16, 1),
    "patchconvnet_multi": Small("S60_multi", {"dim": 64, "depth": 4}, 16, 5),
    "dino": Small("vit_tiny", _VIT, 8, 1),
}
SMALLEST = {
    "rest": "rest_lite",
    "restv2": "restv2_tiny",
    "resformer": "resformer_tiny",
    "resmlp": "resmlp_12",
    "deit": "deit_tiny",
    "deit_distilled": "deit_tiny_distilled",
    "deit3": "deit3_tiny",
    "cait": "cait_xxs24_224",
    "patchconvnet": "S60",
    "dino": "vit_tiny",
}


def build(family: str, seed: int = 0, classes: int = 5, **options: object) -> Backbone:
    """The small model, in training mode."""
    torch.manual_seed(seed)
    return create_model(SMALL[family].name, classes, **(SMALL[family].options | options))


def stirred(model: Backbone) -> Backbone:
    """With every parameter random, in evaluation mode: a fresh model has zeros where a mistake could hide."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def image(height: int = 64, width: int = 64, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch, 3, height, width, generator=generator)
