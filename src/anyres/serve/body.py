"""A request's body: bounded in bytes, in time and in memory, whoever sends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from anyres.config import first_line
from anyres.serve.errors import Refused
from anyres.serve.options import Limits

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every byte that clients get wrong
HELD = 256 * 10**6
"""Bytes of bodies in memory at a time."""
GONE = 499
"""The status that is logged where the client has left: nobody reads it."""


class Bodies:
    """Reads bodies within ``limits``, and counts what is in flight."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most = int(1e6 * limits.megabytes)
        self.in_flight = 0
        self._held = 0

    @contextmanager
    def counted(self, request: Request) -> Iterator[None]:
        """Inside, a request counts as in flight, and its body as held. Raises Refused where too many are."""
        if self.in_flight >= self.limits.in_flight:
            line = f"{self.in_flight} requests are in flight here, and no more are taken: come again"
            raise Refused(503, "in_flight", line, retry_ms=1000.0, closes=True)
        self.in_flight += 1
        request.state.held = 0
        try:
            yield
        finally:
            self.in_flight -= 1
            self._held -= request.state.held

    async def read(self, request: Request) -> bytes:
        """The whole body of a request that is ``counted``. Raises Refused where it is too long, too slow, compressed or
        broken off."""
        coding = request.headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            raise Refused(415, "encoding", "a compressed body is not read here: send it as it is", closes=True)
        told = request.headers.get("content-length", "0")
        if told.isascii() and told.isdigit() and int(told) > self.most:
            raise self._too_long()
        parts = bytearray()
        try:
            async with asyncio.timeout(self.limits.read_s):
                async for chunk in request.stream():
                    parts += chunk
                    self._held += len(chunk)
                    request.state.held += len(chunk)
                    if len(parts) > self.most:
                        raise self._too_long()
                    if self._held > HELD:
                        raise Refused(503, "memory", "too many bodies are in memory here: come again", retry_ms=1000.0)
        except TimeoutError:
            line = f"the body did not come within {self.limits.read_s:g} s"
            raise Refused(408, "slow", line, closes=True) from None
        except ClientDisconnect:
            raise Refused(GONE, "gone", "the client has left") from None
        return bytes(parts)

    def _too_long(self) -> Refused:
        line = f"the body is longer than {self.limits.megabytes:g} MB: send a smaller image"
        return Refused(413, "bytes", line, closes=True)


def image_in(request: Request, body: bytes) -> bytes:
    """The encoded image of a request: the file ``image`` of a form, or the body itself. Raises Refused."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.lower() == b"multipart/form-data":
        return _part(options.get(b"boundary", b""), body)
    if kind.lower().startswith(b"image/") or kind.lower() == b"application/octet-stream":
        if not body:
            raise Refused(400, "empty", "the body is empty: send an image")
        return body
    line = "send the image as multipart/form-data with a file called `image`, or as the body with its type, image/jpeg"
    raise Refused(415, "type", line)


def _part(boundary: bytes, body: bytes) -> bytes:
    """The file ``image`` of a form. Raises Refused."""
    form = _Form()
    try:
        form.read(boundary, body)
    except (FormParserError, ValueError) as error:
        raise Refused(400, "form", f"the form cannot be read: {first_line(error)}") from None
    if form.image is None:
        raise Refused(400, "form", "the form has no file called `image`: send one, as curl -F image=@photo.jpg does")
    if not form.image:
        raise Refused(400, "empty", "the file `image` is empty: send an image")
    return form.image


class _Form:
    """Gathers, as the parser tells of it, the first whole file called ``image``; nothing else is kept."""

    def __init__(self) -> None:
        self.image: bytes | None = None
        self._field, self._value, self._disposition = bytearray(), bytearray(), b""
        self._data: bytearray | None = None  # of the part in hand, where it is wanted

    def read(self, boundary: bytes, body: bytes) -> None:
        """Read the whole form. Raises FormParserError."""
        parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._headers,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
            },
        )
        parser.write(body)
        parser.finalize()

    def _header(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        wanted = options.get(b"name") == b"image" and b"filename" in options and self.image is None
        self._data, self._disposition = bytearray() if wanted else None, b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data += data[start:end]

    def _part_end(self) -> None:
        if self._data is not None:
            self.image, self._data = bytes(self._data), None
