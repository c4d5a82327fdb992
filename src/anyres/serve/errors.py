"""What a client is told where there is no answer: a status, one line of JSON, and what goes with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.responses import JSONResponse

from anyres.config import first_line, printable
from anyres.data.decode import Unreadable
from anyres.serve.pictures import TooLarge

MOST = 500
"""Characters of a line; what is longer is cut in the middle."""


class Refused(Exception):
    """No answer: ``status`` of HTTP, one ``line`` that says what to do, and the ``reason`` by which refusals are
    counted.

    ``retry_ms``: until it is worth asking again (None: never as it is). ``closes``: the connection is of no more use,
    as its body was not read.
    """

    def __init__(
        self, status: int, reason: str, line: str, *, retry_ms: float | None = None, closes: bool = False
    ) -> None:
        super().__init__(line)
        self.status, self.reason, self.line = status, reason, line
        self.retry_ms, self.closes = retry_ms, closes

    def response(self) -> JSONResponse:
        """For the client: ``{"error": line}``, with Retry-After in whole seconds where it is worth it."""
        content: dict[str, object] = {"error": printable(self.line, MOST)}
        headers: dict[str, str] = {}
        if self.retry_ms is not None:
            content["retry_after_ms"] = round(self.retry_ms, 1)
            headers["retry-after"] = str(max(1, math.ceil(self.retry_ms / 1000)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.closes:
            headers["connection"] = "close"
        return JSONResponse(content, self.status, headers)


@contextmanager
def reading() -> Iterator[None]:
    """Inside, an image that cannot be read, or is too large, is Refused."""
    try:
        yield
    except TooLarge as error:
        raise Refused(413, "pixels", first_line(error)) from None
    except Unreadable as error:
        raise Refused(422, "unreadable", f"the image cannot be read: {error.reason}") from None


def plain(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error that the framework found, in the same form."""
    return JSONResponse({"error": printable(line, MOST)}, status, dict(headers or {}))
