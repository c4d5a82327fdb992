"""What the answers of a bulk prediction depend on, so that no file mixes those of two models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from anyres.models.state_files import digest_of
from anyres.runs.bulk.options import BulkOptions
from anyres.runs.inputs import describe_preprocessing
from anyres.runs.opened import TrainedModel


def asked_of(trained: TrainedModel, options: BulkOptions, inputs: Sequence[str]) -> dict[str, Any]:
    """Plain values to be compared. ``inputs``: what tells the words for the images from others."""
    return {
        "model": trained.name,
        "weights": digest_of(trained.model.state_dict()),
        "classes": hashlib.sha256("\n".join(trained.classes).encode()).hexdigest(),
        "preprocessing": describe_preprocessing(trained.recipe, options.sizes),
        "options": options.plain(),
        "inputs": list(inputs),
    }
