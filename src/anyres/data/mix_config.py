"""Mixup, CutMix and label smoothing, as values; ``anyres.data.mix`` does it. Imports no torch."""

from __future__ import annotations

from anyres.config import config


@config
class MixConfig:
    """Mixup, CutMix and label smoothing."""

    # alpha of mixup's Beta distribution (0: off)
    mixup: float = 0.0
    # alpha of CutMix's Beta distribution (0: off)
    cutmix: float = 0.0
    # probability that a batch is mixed
    prob: float = 1.0
    # probability of CutMix where both are on
    switch: float = 0.5
    # a share of the target that all classes divide among them, or with several labels each class and its absence
    smoothing: float = 0.0
    # one draw for all views, else one for each, with a target for each
    share: bool = True

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0:
            raise ValueError(f"mixup {self.mixup} and cutmix {self.cutmix} are alphas: 0 (off) or more")
        if not all(0 <= p <= 1 for p in (self.prob, self.switch, self.smoothing)):
            raise ValueError("prob, switch and smoothing of mix lie between 0 and 1")

    @property
    def on(self) -> bool:
        """Whether targets become soft."""
        return bool(self.mixup or self.cutmix or self.smoothing)
