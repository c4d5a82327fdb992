"""The loader called with plain numbers: targets instead of records, and options by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from anyres.data.augment_config import AugmentConfig
from anyres.data.loader import LoaderOptions, Rank, Steps, eval_batches, train_batches
from anyres.data.samples import Images
from anyres.data.targets import LabelReader
from anyres.data.views_config import ViewsConfig
from anyres.flow import Batch, Record, Size


def records_of(targets: Tensor) -> tuple[Record, ...]:
    """A record without an image for each class index, or for each row of classes."""
    if targets.ndim == 1:
        return tuple(Record(b"", int(t), f"p{i}") for i, t in enumerate(targets))
    return tuple(Record(b"", tuple(row.nonzero()[:, 0].tolist()), f"p{i}") for i, row in enumerate(targets))


def reader_for(targets: Tensor) -> LabelReader:
    return LabelReader(None if targets.ndim == 1 else targets.shape[1])


def load(
    images: Images,
    targets: Tensor,
    augment: AugmentConfig,
    views: ViewsConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    repeats: int = 1,
    rank: int = 0,
    world: int = 1,
    seen: Callable[[int], range] | None = None,
    classes: Sequence[int] | None = None,
    **options: object,
) -> Iterator[Batch]:
    steps = Steps(batch_size, seed, start_step, stop_step, repeats, seen, classes)
    given = LoaderOptions(**options)  # type: ignore[arg-type]
    return train_batches(
        images, records_of(targets), reader_for(targets), augment, views, steps, Rank(rank, world), given
    )


def evaluate(
    images: Images,
    targets: Tensor,
    size: Size,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    **how: object,
) -> Iterator[Batch]:
    return eval_batches(
        images,
        records_of(targets),
        reader_for(targets),
        size,
        rank=Rank(rank, world),
        options=LoaderOptions(workers),
        **how,  # type: ignore[arg-type]
    )


def same_targets(a: Batch, b: Batch) -> bool:
    return torch.equal(a.targets.of(0), b.targets.of(0))
