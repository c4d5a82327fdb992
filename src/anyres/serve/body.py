"""A request's body: bounded in bytes, in time and in memory, whoever sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from anyres.serve.errors import Refused
from anyres.serve.options import Limits

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
    def counted(self) -> Iterator[None]:
        """Inside, a request counts as in flight. Raises Refused where too many are."""
        if self.in_flight >= self.limits.in_flight:
            line = f"{self.in_flight} requests are in flight here, and no more are taken: come again"
            raise Refused(503, "in_flight", line, retry_ms=1000.0, closes=True)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def read(self, request: Request) -> bytes:
        """The whole body. Raises Refused where it is too long, too slow, compressed or broken off."""
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
                    if len(parts) > self.most:
                        raise self._too_long()
                    if self._held > HELD:
                        raise Refused(503, "memory", "too many bodies are in memory here: come again", retry_ms=1000.0)
        except TimeoutError:
            line = f"the body did not come within {self.limits.read_s:g} s"
            raise Refused(408, "slow", line, closes=True) from None
        except ClientDisconnect:
            raise Refused(GONE, "gone", "the client has left") from None
        finally:
            self._held -= len(parts)
        return bytes(parts)

    def _too_long(self) -> Refused:
        line = f"the body is longer than {self.limits.megabytes:g} MB: send a smaller image"
        return Refused(413, "bytes", line, closes=True)


class _InMemory(MultiPartParser):
    """Nothing is written to disk: the body is in memory already."""

    spool_max_size = 2**31


async def image_in(request: Request, body: bytes) -> bytes:
    """The encoded image of a request: the file ``image`` of a form, or the body itself. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _part(request.headers, body)
    if kind.startswith("image/") or kind == "application/octet-stream":
        if not body:
            raise Refused(400, "empty", "the body is empty: send an image")
        return body
    line = "send the image as multipart/form-data with a file called `image`, or as the body with its type, image/jpeg"
    raise Refused(415, "type", line)


async def _part(headers: Headers, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await _InMemory(headers, stream(), max_files=1, max_fields=16, max_part_size=2**16).parse()
    except MultiPartException as error:
        raise Refused(400, "form", f"the form cannot be read: {error.message}") from None
    except (ValueError, LookupError) as error:  # of headers that are none
        raise Refused(400, "form", f"the form cannot be read: {error}") from None
    found = form.get("image")
    if not isinstance(found, UploadFile):
        raise Refused(400, "form", "the form has no file called `image`: send one, as curl -F image=@photo.jpg does")
    content = await found.read()
    await found.close()
    if not content:
        raise Refused(400, "empty", "the file `image` is empty: send an image")
    return content
