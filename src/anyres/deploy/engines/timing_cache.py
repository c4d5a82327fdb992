"""Timings of backends on this machine, kept in the user's cache so that the next start is quick."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anyres.storage import cache_root, locked, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackendTiming:
    """One backend on this machine."""

    backend: str  # as openvino:bf16
    ms: float  # median time of one batch
    error: float  # relative distance of its logits from eager float32's


class TimingCache:
    """The timings of one key, in the file ``backends.json`` of the cache folder."""

    def __init__(self, key: dict[str, Any]) -> None:
        self.key = json.dumps(key, sort_keys=True)
        self.path = cache_root() / "backends.json"

    def read(self) -> tuple[BackendTiming, ...]:
        """What was measured for this key, fastest first; nothing if never, or by an earlier version."""
        try:
            return tuple(BackendTiming(**row) for row in self._all().get(self.key, ()))
        except TypeError:
            return ()

    def write(self, timings: Sequence[BackendTiming]) -> None:
        """Keep ``timings``; where the cache cannot be written, the next start measures again, and a warning says so."""
        try:
            with locked(self.path.with_name(f"{self.path.name}.lock")):
                rows = self._all() | {self.key: [asdict(timing) for timing in timings]}
                write_text(self.path, json.dumps(rows, indent=1))
        except OSError as error:
            log.warning("%s cannot be written (%s): every start measures", self.path, error.strerror)

    def _all(self) -> dict[str, list[dict[str, Any]]]:
        try:
            rows = json.loads(self.path.read_text())
        except (OSError, ValueError):  # none yet, or damaged: measured anew
            return {}
        return rows if isinstance(rows, dict) else {}
