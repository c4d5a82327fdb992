"""What the loader gives a classifier to learn: class indices, or which classes each image has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from anyres.data.sources import Source
from anyres.flow import Geometry, Labels, Record

ClassTarget = int | tuple[int, ...]
"""A class index (-1: no label), or the indices of an image's classes."""


@dataclass(frozen=True)
class LabelReader:
    """The classes of an image, the same for all its views.

    ``classes`` None: one class an image, and a batch has ``Labels(int64 (b,))``; a number k: any of k classes, and a
    batch has ``Labels(bool (b, k))``.
    """

    classes: int | None = None

    def read(self, record: Record) -> ClassTarget:
        """The record's class index, or the indices of its classes."""
        assert isinstance(record.target, int | tuple)
        return record.target

    def view(self, target: ClassTarget, geometry: Geometry) -> ClassTarget:  # noqa: ARG002
        """The target as it is: a crop does not change the class."""
        return target

    def collate(self, targets: Sequence[Sequence[ClassTarget]]) -> Labels:
        """``targets[image][view]`` -> (b,) or (b, k)."""
        first = [views[0] for views in targets]
        if self.classes is None:
            return Labels(torch.tensor(first, dtype=torch.int64))
        hot = torch.zeros(len(first), self.classes, dtype=torch.bool)
        for row, indices in zip(hot, first, strict=True):
            row[list(indices) if isinstance(indices, tuple) else [indices]] = True
        return Labels(hot)


def reader_of(source: Source) -> LabelReader:
    """What reads the labels of a source: one class an image, or several."""
    return LabelReader(len(source.classes) if source.labelling == "several" else None)
