"""The labels of a source as one tensor: class indices (n,), or which classes each image has (n, k)."""

from __future__ import annotations

from torch import Tensor

from anyres.data.sources import Source
from anyres.data.targets import reader_of


def targets(source: Source) -> Tensor:
    reader = reader_of(source)
    return reader.collate([[reader.read(record)] for record in source.records]).value
