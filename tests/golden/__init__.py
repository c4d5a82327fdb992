"""Outputs of the official research code under synthetic weights, and the rule those weights follow.

``fill.py`` is that rule; ``meta.json`` describes the arrays, and holds parameters and MACs per variant.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


@cache
def meta() -> dict[str, Any]:
    return json.loads((HERE / "meta.json").read_text())


def keys(variant: str) -> dict[str, tuple[list[int], str]]:
    """Official state-dict key -> (shape, dtype)."""
    entries = json.loads((HERE / "keys" / f"{variant}.json").read_text())["keys"]
    return {name: (shape, dtype) for name, shape, dtype in entries}


def arrays(name: str) -> dict[str, Tensor]:
    """``logits_resmlp`` -> its arrays by name."""
    with np.load(HERE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def grad_norms(family: str) -> dict[str, Any]:
    return json.loads((HERE / f"grad_norms_{family}.json").read_text())
