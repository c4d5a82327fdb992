"""Backbones, one file per paper family, and any model of timm or torchvision, behind four functions."""

from anyres.models.create import create_model
from anyres.models.registry import list_models, register_family, variant

__all__ = ["create_model", "list_models", "register_family", "variant"]
