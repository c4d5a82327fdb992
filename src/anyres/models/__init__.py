"""Backbones, one file per paper family, behind three functions."""

from anyres.models.registry import create_model, list_models, variant

__all__ = ["create_model", "list_models", "variant"]
