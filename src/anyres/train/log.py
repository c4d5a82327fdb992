"""What a run says while it works: metrics.jsonl (the record), TensorBoard (the picture), a bar (the moment)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes one line of JSON per record to ``run/metrics.jsonl`` and the same numbers to ``run/tensorboard``.

    Opened at a step, it first drops every record of that step or later, so that a resumed run's record reads as if
    nothing had happened.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / "metrics.jsonl"
        kept = [line for line in _lines(self.path) if json.loads(line)["step"] < step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        partial.replace(self.path)
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` under ``step``."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _lines(path: Path) -> list[str]:
    """The whole lines of the file; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    return [line.removesuffix("\n") for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


class Bar:
    """A progress bar on a terminal; elsewhere one plain line per epoch. Used as a context manager."""

    def __init__(self, console: Console, title: str, steps: int, start: int, steps_per_epoch: int) -> None:
        self._console, self._title, self._steps, self._per_epoch = console, title, steps, steps_per_epoch
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task = self._progress.add_task(title, total=steps, completed=start, facts="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: int, facts: str) -> None:
        """``step`` steps are done; ``facts`` is the short text beside the bar."""
        self._progress.update(self._task, completed=step, facts=facts)
        if not self._console.is_terminal and (step % self._per_epoch == 0 or step == self._steps):
            epoch, epochs = -(-step // self._per_epoch), -(-self._steps // self._per_epoch)
            line = f"{self._title}  epoch {epoch}/{epochs}  step {step}/{self._steps}  {facts}"
            self._console.print(line, soft_wrap=True)
