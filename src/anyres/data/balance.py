"""Balanced sampling: an epoch in which every class comes equally often, whatever its number of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from anyres.data.augment import mix_seed

_BALANCE = 4  # a stage of the seed, beside those of the mix


def balanced_order(classes: Sequence[int], seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The n images of an epoch, drawn from (seed, epoch), for images of these n classes: positions, plus n for each
    time that the image came before.

    Each class that has images comes n / k times, one more where that leaves a rest: all its images in turn, as often
    as it takes. Of a class that has more, other ones come in each epoch.
    """
    rng = np.random.default_rng(mix_seed(seed, epoch, _BALANCE))
    known = np.asarray(classes)
    n, present = len(known), np.unique(known)
    share, rest = divmod(n, len(present))
    more = set(rng.permutation(present)[:rest].tolist())
    drawn = []
    for one in present.tolist():
        members, wanted = np.flatnonzero(known == one), share + (one in more)
        tours = [rng.permutation(members) + n * tour for tour in range(-(-wanted // len(members)))]
        drawn.append(np.concatenate([*tours, members[:0]])[:wanted])
    return rng.permutation(np.concatenate(drawn)).astype(np.int64)
