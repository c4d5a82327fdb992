"""What the answers of a bulk prediction depend on, so that no file mixes those of two models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from anyres.runs.bulk.options import BulkOptions
from anyres.runs.inputs import describe_preprocessing
from anyres.runs.opened import TrainedModel


def asked_of(trained: TrainedModel, options: BulkOptions, inputs: Sequence[str]) -> dict[str, Any]:
    """Plain values to be compared. ``inputs``: what tells the words for the images from others."""
    return {
        "model": trained.name,
        "weights": weights_digest(trained),
        "classes": hashlib.sha256("\n".join(trained.classes).encode()).hexdigest(),
        "preprocessing": describe_preprocessing(trained.recipe, options.sizes),
        "options": options.plain(),
        "inputs": list(inputs),
    }


def weights_digest(trained: TrainedModel) -> str:
    """SHA-256 of a model's tensors with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trained.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
