"""The checkpoints of one run: checked before they are written, and written whatever ends the loop."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType

import torch
from accelerate import Accelerator

from anyres.config import first_line
from anyres.training import checkpoint
from anyres.training.log import RunLog
from anyres.training.state import State, first_non_finite
from anyres.training.step import NonFiniteLoss, NonFiniteWeights, all_agree, settle

logger = logging.getLogger(__name__)


class Keeper:
    """Writes the checkpoints of one run. As a context manager it saves the last whole step whatever ends the loop.

    ``whole``: the state is that after a step, not within one.
    """

    def __init__(self, accelerator: Accelerator, run: Path, state: State, log: RunLog | None) -> None:
        self._accelerator, self._run, self._state, self._log = accelerator, run, state, log
        self._saved = (state.progress.step, state.progress.unscored)
        self.whole = True

    def check(self) -> None:
        """Raises NonFiniteWeights, on every process alike, where a weight or its average is not finite."""
        name = first_non_finite(self._state)
        here = torch.tensor(name is None, device=self._accelerator.device)
        if not all_agree(self._accelerator, here):
            raise NonFiniteWeights(self._state.progress.step, name or "of another process")

    def save(self) -> None:
        """By all processes at once."""
        accelerator = self._accelerator
        if accelerator.is_main_process or self._state.replica is not None:
            self._write()
        accelerator.wait_for_everyone()

    def _write(self) -> None:
        if self._log:
            self._log.sync()
        checkpoint.save(self._run, self._state, write=self._accelerator.is_main_process)
        self._saved = (self._state.progress.step, self._state.progress.unscored)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        progress = self._state.progress
        if error is not None and self.whole:
            try:
                settle(self._state)
            except NonFiniteLoss as late:  # a resumed run makes that step again, and says what is wrong with it
                progress.step, progress.unscored = late.step, False
        new = self.whole and progress.step > 0 and (progress.step, progress.unscored) != self._saved
        if error is None or not new or not self._accelerator.is_main_process or self._state.replica is not None:
            return  # of a model that is split over processes all would have to take part
        if first_non_finite(self._state) is None:
            try:
                self._write()
                logger.info("the state after step %d is saved", progress.step)
            except Exception as second:  # such as a full disk, which may be what has ended the loop
                logger.warning("the state after step %d cannot be saved: %s", progress.step, first_line(second))
