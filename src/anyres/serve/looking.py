"""Maps of what the served model looks at: one at a time, and only while no image waits for an answer."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from anyres.config import UserError, need
from anyres.flow import Size
from anyres.maps.draw import data_url, heat, over_pixels
from anyres.maps.look import Method, method_of
from anyres.runs.look import Looker, LookOptions
from anyres.serve.errors import Refused, reading
from anyres.serve.model import ServedModel
from anyres.serve.scheduler import Scheduler

RETRY_MS = 1000.0


@dataclass(frozen=True)
class Looked:
    """The answer to ``POST /map``."""

    method: Method  # attention where the family has it, else cam
    of: str | None  # the class that the map speaks for; null: it is the same for every class
    size: str  # px, 224 or 320x192 (height x width), at which the model saw the image
    values: list[list[float]]  # rows of positions, at least 0; of several heads the mean
    stride: int  # px of the image as the model saw it, on a side of each position
    picture: str  # a data URL: that image in gray, with the map over it
    milliseconds: float  # of decoding, the model and the drawing
    model: str


class Looking:
    """Looks for one request after another. ``method``: how; None: this model has no map here."""

    def __init__(self, model: ServedModel, scheduler: Scheduler) -> None:
        self._model, self._scheduler = model, scheduler
        self.method = _method(model)
        self._turn = threading.Lock()

    async def answer(self, content: bytes, size: Size | None) -> Looked:
        """The map of an encoded image; ``size``: None is the best one. Raises Refused."""
        if self.method is None:
            raise Refused(422, "map", "this model has no map here: its server needs pip install 'anyres[maps]'")
        if self._scheduler.dispatcher.backlog_ms() > 0:
            raise _busy()
        asked = size or self._model.rungs[-1].size
        return await self._scheduler.read(lambda: self._look(content, asked))

    def _look(self, content: bytes, size: Size) -> Looked:
        """In a thread, which goes on where the client has left."""
        if not self._turn.acquire(blocking=False):
            raise _busy()
        try:
            return self._looked(content, size)
        except UserError as error:
            raise Refused(422, "map", str(error)) from None
        finally:
            self._turn.release()

    def _looked(self, content: bytes, size: Size) -> Looked:
        start = time.perf_counter()
        with reading():
            picture = self._model.read(content)
        seen = Looker(self._model.trained, LookOptions(size, self.method))(picture)
        values = seen.maps.mean(0)
        drawn = heat(seen.picture, over_pixels(values[None], seen.stride, (size.height, size.width))[0])
        return Looked(
            seen.method,
            seen.of,
            str(size),
            values.tolist(),
            seen.stride,
            data_url(drawn),
            round(1000 * (time.perf_counter() - start), 3),
            self._model.name,
        )


def _busy() -> Refused:
    line = "maps are made one at a time, while no image waits for its answer: come again"
    return Refused(503, "map", line, retry_ms=RETRY_MS)


def _method(model: ServedModel) -> Method | None:
    """The usual method, where what it needs is installed."""
    method = method_of(model.trained.backbone, None)
    if method == "attention":
        return method
    try:
        need("captum", extra="maps")
    except UserError:
        return None
    return method
