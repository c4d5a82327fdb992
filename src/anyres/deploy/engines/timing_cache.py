"""Timings of backends on this machine, kept in the user's cache so that the next start is quick."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anyres.config import Damaged
from anyres.storage import cache_root, locked, read_json, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendTiming:
    """One backend on this machine."""

    backend: str  # as openvino:bf16
    ms: float  # median time of one batch
    error: float  # relative distance of its logits from eager float32's

    def __post_init__(self) -> None:
        if not 0 < self.ms < math.inf or not self.error >= 0:
            raise ValueError(f"{self.backend} took {self.ms} ms with an error of {self.error}")


class TimingCache:
    """The timings of one key, in the file ``backends.json`` of the cache folder."""

    def __init__(self, key: dict[str, Any]) -> None:
        self.key = json.dumps(key, sort_keys=True)
        self.path = cache_root() / "backends.json"

    def read(self) -> tuple[BackendTiming, ...]:
        """What was measured for this key, fastest first; nothing if never, or by an earlier version."""
        return tuple(self._all().get(self.key, ()))

    def write(self, timings: Sequence[BackendTiming]) -> None:
        """Keep ``timings``; where the cache cannot be written, the next start measures again, and a warning says so."""
        try:
            with locked(self.path.with_name(f"{self.path.name}.lock")):
                rows = self._all() | {self.key: list(timings)}
                plain = {key: [asdict(timing) for timing in kept] for key, kept in rows.items()}
                write_text(self.path, json.dumps(plain, indent=1))
        except OSError as error:
            log.warning("%s cannot be written (%s): every start measures", self.path, error.strerror)

    def _all(self) -> dict[str, list[BackendTiming]]:
        try:
            rows: dict[str, list[BackendTiming]] = read_json(self.path, dict[str, list[BackendTiming]])
        except (OSError, Damaged):  # none yet, or damaged: measured anew
            return {}
        return rows
