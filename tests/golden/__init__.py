"""Outputs of the official research code under synthetic weights, and the rule those weights follow.

``fill.py`` is that rule; ``meta.json`` describes the arrays, ``facts.json`` holds parameters and MACs per variant.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent


@cache
def meta() -> dict[str, Any]:
    return json.loads((HERE / "meta.json").read_text())


@cache
def facts() -> dict[str, dict[str, Any]]:
    """Golden name of each variant that official code can construct -> what was measured of it."""
    variants = json.loads((HERE / "facts.json").read_text())["variants"]
    return {name: about for name, about in variants.items() if about["status"] == "ok"}


class Built(NamedTuple):
    """How ``create_model`` builds a golden variant."""

    name: str
    options: dict[str, Any]


def built(golden_name: str) -> Built:
    """``deit_small_patch16_LS@384`` and ``...+hMLP`` are options; DINO's tiny one has its factory's name."""
    name, at, size = golden_name.partition("@")
    if at:
        grid = {} if name.startswith("restv2") else {"img_size": int(size)}
        return Built(name, grid)
    name, hmlp, _ = golden_name.partition("+hMLP")
    return Built({"vit_tiny_p16": "vit_tiny"}.get(name, name), {"stem": "hmlp"} if hmlp else {})


def keys(golden_name: str) -> dict[str, tuple[list[int], str]]:
    """Official state-dict key -> (shape, dtype)."""
    file = HERE / "keys" / facts()[golden_name]["family"] / f"{golden_name}.json"
    return {name: (shape, dtype) for name, shape, dtype in json.loads(file.read_text())["keys"]}


def arrays(name: str) -> dict[str, Tensor]:
    """``logits_resmlp`` -> its arrays by name."""
    with np.load(HERE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def grad_norms(family: str) -> dict[str, Any]:
    return json.loads((HERE / f"grad_norms_{family}.json").read_text())
