"""Pictures with as many detections as there are, brought together from several processes.

What a process has is one table of tensors, sent as whole bytes: nothing is padded row by row, and no number changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from safetensors.torch import load, save
from torch import Tensor

from anyres.evaluation.detections import Detections, Truth
from anyres.evaluation.evaluator import EvalSettings
from anyres.flow import Rle, Size


class Picture(NamedTuple):
    """The picture at position ``place`` of the dataset: what is there, what was found."""

    place: int
    truth: Truth
    found: Detections


def gather_pictures(own: Sequence[Picture], how: EvalSettings) -> list[Picture]:
    """Those of all processes by their index, ascending, each once: as a sampler deals some twice to fill its last
    batch. Every process has to call it, also one without pictures."""
    content = save(_table(own))
    words = torch.from_numpy(np.frombuffer(content + bytes(-len(content) % 8), np.int64).copy()).to(how.device)
    lengths = how.gather(torch.tensor([len(content)], device=how.device)).tolist()
    blocks = how.gather(words).cpu().numpy().reshape(len(lengths), -1)
    tables = [load(block.tobytes()[:length]) for block, length in zip(blocks, lengths, strict=True)]
    found = {picture.place: picture for table in tables for picture in _pictures(table)}
    return [found[place] for place in sorted(found)]


def _table(own: Sequence[Picture]) -> dict[str, Tensor]:
    """Columns of all pictures, truths and detections, one after another, and how many each picture has."""
    truths, found = [one.truth for one in own], [one.found for one in own]
    none = np.zeros((0, 4), np.float32)
    arrays = {
        "index": np.array([one.place for one in own], np.int64),
        "size": np.array([tuple(t.of_size) for t in truths], np.int64).reshape(-1, 2),
        "truths": np.array([len(t) for t in truths], np.int64),
        "found": np.array([len(f) for f in found], np.int64),
        "truth.boxes": np.concatenate([none, *(t.boxes for t in truths)]),
        "truth.classes": np.concatenate([none[:, 0].astype(np.int64), *(t.classes for t in truths)]),
        "truth.crowd": np.concatenate([none[:, 0].astype(bool), *(t.crowd for t in truths)]),
        "truth.areas": np.concatenate([none[:, 0].astype(np.float64), *(t.areas for t in truths)]),
        "found.boxes": np.concatenate([none, *(f.boxes for f in found)]),
        "found.scores": np.concatenate([none[:, 0], *(f.scores for f in found)]),
        "found.classes": np.concatenate([none[:, 0].astype(np.int64), *(f.classes for f in found)]),
    }
    for name, each in (("truth", [t.masks for t in truths]), ("found", [f.masks for f in found])):
        if each and all(masks is not None for masks in each):
            runs = [mask.counts for masks in each for mask in masks or ()]
            arrays[f"{name}.runs"] = np.array([len(one) for one in runs], np.int64)
            arrays[f"{name}.counts"] = np.concatenate([np.zeros(0, np.int64), *runs])
    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}


def _pictures(table: dict[str, Tensor]) -> list[Picture]:
    """What ``_table`` was made of."""
    arrays = {key: tensor.numpy() for key, tensor in table.items()}
    sizes = [Size(*sides) for sides in arrays["size"].tolist()]

    def by_picture(key: str, count: str) -> list[Any]:
        return np.split(arrays[key], arrays[count].cumsum()[:-1]) if len(sizes) else []

    def masks(name: str, count: str) -> Sequence[tuple[Rle, ...] | None]:
        if f"{name}.runs" not in arrays:
            return [None] * len(sizes)
        return _masks(arrays[f"{name}.runs"], arrays[f"{name}.counts"], arrays[count], sizes)

    there = [by_picture(f"truth.{key}", "truths") for key in ("boxes", "classes", "crowd", "areas")]
    said = [by_picture(f"found.{key}", "found") for key in ("boxes", "scores", "classes")]
    truths = map(Truth, *there, masks("truth", "truths"), sizes)
    found = map(Detections, *said, masks("found", "found"))
    return list(map(Picture, arrays["index"].tolist(), truths, found))


def _masks(
    runs: Int64[np.ndarray, " m"], counts: Int64[np.ndarray, " c"], each: Int64[np.ndarray, " n"], sizes: Sequence[Size]
) -> list[tuple[Rle, ...] | None]:
    """Masks by picture: ``runs`` of each mask, ``each`` of each picture."""
    lengths = iter(np.split(counts, runs.cumsum()[:-1]) if len(runs) else [])
    return [tuple(Rle(next(lengths), size) for _ in range(n)) for n, size in zip(each.tolist(), sizes, strict=True)]
