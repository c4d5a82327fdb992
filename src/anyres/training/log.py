"""What a run says while it works: metrics.jsonl (the record), TensorBoard and others' trackers (the picture), a bar
(the moment)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anyres.config import need
from anyres.storage import write_text
from anyres.training.plan import Tracker

log = logging.getLogger(__name__)

REFRESHED_S = 0.1
"""So often the bar on a terminal changes."""


class RunLog:
    """Writes one line of JSON per record to ``run/metrics.jsonl`` and the same numbers to ``run/tensorboard`` and the
    trackers.

    Opened at a step, it first drops every record of that step or later, so that a resumed run's record reads as if
    nothing had happened; of the step before, the scores, where that is ``unscored``. For that reason it holds no times:
    those go to the pictures alone, as ``passing``. Lines that a crash has damaged are left out, and a sentence says so.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        trackers: Sequence[Tracker] = (),
        settings: Mapping[str, Any] | None = None,
        unscored: bool = False,
    ) -> None:
        self._trackers = [
            open_tensorboard(run, step),
            *(open_tracker(name, run, settings or {}) for name in trackers),
        ]
        self.path = run / "metrics.jsonl"
        kept, damaged = _records(self.path, step, unscored)
        if damaged:
            log.info("%s: %d damaged lines are left out", self.path, damaged)
        write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float], passing: Mapping[str, float] | None = None) -> None:
        """Record ``values`` under ``step``; ``passing`` ones are only shown."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        shown = {**values, **(passing or {})}
        for tracker in self._trackers:
            tracker.log(shown, step=step)

    def sync(self) -> None:
        """Let what was recorded reach the disk, so that no checkpoint is there before its records."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raises UserError, with the command to run, for a tracker that is not installed."""
    for name in names:
        need(name, extra="trackers", purpose=f"train.trackers=[{name}]")


def open_tensorboard(run: Path, step: int) -> Any:
    """accelerate's tracker that writes to ``run/tensorboard``, where records of ``step`` or later are dropped."""
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("tensorboard", str(run), purge_step=step)
    tracker.start()
    return tracker


def open_tracker(name: Tracker, run: Path, settings: Mapping[str, Any]) -> Any:
    """accelerate's tracker of that name, in the project ``anyres``, under the run folder's name, with ``settings``.

    What it calls the run is kept in ``run/NAME.id``, so that a resumed run goes on in the same place. Where it writes
    to is the tracker's own business (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``).
    """
    from accelerate.tracking import MLflowTracker, WandBTracker

    kept = run / f"{name}.id"
    known = kept.read_text("utf-8") if kept.exists() else None
    if name == "wandb":
        tracker = WandBTracker("anyres", name=run.name, id=known, resume="allow", dir=str(run))
    else:
        tracker = MLflowTracker("anyres", run_name=run.name, run_id=known)
    tracker.start()
    write_text(kept, tracker.tracker.id if name == "wandb" else tracker.tracker.info.run_id)
    tracker.store_init_configuration(dict(settings))
    return tracker


def _records(path: Path, step: int, unscored: bool) -> tuple[list[str], int]:
    """The lines that stay, and the number of those that are damaged; a last one that a crash cut short is neither."""
    kept: list[str] = []
    damaged = 0
    if not path.is_file():
        return kept, damaged
    *lines, _ = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            text = line.decode("utf-8")
            record = json.loads(text)
            of = record["step"]
            if type(of) is not int:
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged += 1
            continue
        scored = any(key.startswith("val/") for key in record)
        if of < step and not (scored and unscored and of == step - 1):
            kept.append(text)
    return kept, damaged


class Bar:
    """A progress bar on a terminal; elsewhere one plain line per epoch. Used as a context manager."""

    def __init__(self, title: str, steps: int, start: int, steps_per_epoch: int, shown: bool = True) -> None:
        console = get_console()
        self._title, self._steps, self._per_epoch = title, steps, steps_per_epoch
        self._is_terminal = console.is_terminal
        self._last = 0.0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=max(4, min(24, console.width - 90))),  # the numbers come first
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not (shown and console.is_terminal),
            transient=False,
        )
        self._task = self._progress.add_task(title, total=steps, completed=start, facts="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self._progress.stop()

    def tells(self, step: int) -> bool:
        """Whether a plain line is to be written after ``step`` steps."""
        return not self._is_terminal and (step % self._per_epoch == 0 or step == self._steps)

    def is_due(self, step: int) -> bool:
        """Whether something is to be shown after ``step`` steps: on a terminal a few times a second."""
        if not self._is_terminal:
            return self.tells(step)
        return step == self._steps or time.perf_counter() - self._last >= REFRESHED_S

    def show(self, step: int, facts: str) -> None:
        """``step`` steps are done; ``facts`` is the short text beside the bar."""
        self._last = time.perf_counter()
        self._progress.update(self._task, completed=step, facts=facts)
        if self.tells(step):
            epoch, epochs = -(-step // self._per_epoch), -(-self._steps // self._per_epoch)
            line = f"{self._title}  epoch {epoch}/{epochs}  step {step}/{self._steps}  {facts}"
            log.info(line)
