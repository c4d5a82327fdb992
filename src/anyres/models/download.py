"""One file over HTTP, whole or to be continued: what came is kept, and the next request asks for the rest of it.

Beside the file lies a note of the version it is of (``<file>.json``), so that two versions are never joined.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anyres.config import Damaged, UserError, first_line
from anyres.storage import read_json, write_json

if TYPE_CHECKING:
    import httpx2

MOST_BYTES = 20 * 10**9  # of a file; the largest known here has a third of that
SPARE_BYTES = 64 * 10**6  # left free on the disk
LOOK_BYTES = 16 * 10**6  # after so many, the free room is looked at again
LEAST_RATE = 1000  # bytes a second
WINDOW = 60.0  # seconds over which that is asked for
TRIES = 5  # in a row without one byte more
PAUSE = 0.5  # seconds before another try; twice that after the first that brought nothing, and so on
BUSY = (408, 429, 500, 502, 503, 504)  # answers worth another try
Show = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Download:
    """A URL, how it is shown (without passwords and signatures), and the file that it fills."""

    url: str
    shown: str
    part: Path

    @property
    def note(self) -> Path:
        return self.part.with_name(self.part.name + ".json")

    @property
    def came(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def run(self) -> None:
        """Fills the file, going on where an earlier run stopped. Raises UserError, one line, and OSError of the disk.

        Tries again when the connection drops, until TRIES in a row brought nothing new.
        """
        import httpx2

        limits = httpx2.Timeout(30.0, connect=15.0)
        headers = {"User-Agent": "anyres", "Accept": "*/*", "Accept-Encoding": "identity"}
        try:
            with (
                _progress(self) as show,
                httpx2.Client(
                    follow_redirects=True,
                    max_redirects=10,
                    timeout=limits,
                    headers=headers,
                    event_hooks={"response": [refuse_downgrade]},
                ) as client,
            ):
                _persist(self, client, show, _Pace(self))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # what trying again cannot mend
            raise UserError(f"cannot fetch {self.shown}: {first_line(error)}; check the address") from error


class _Dropped(Exception):
    """The connection ended early or the server is busy: worth another try, after ``wait`` seconds if it said so."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _Pace:
    """Ends a download that brings next to nothing, in one connection or in many."""

    def __init__(self, what: Download) -> None:
        self._what, self._since, self._had = what, time.monotonic(), what.came

    def check(self, came: int) -> None:
        """Raises UserError where the last WINDOW seconds brought less than LEAST_RATE."""
        spent = time.monotonic() - self._since
        if spent < WINDOW:
            return
        if came - self._had < LEAST_RATE * spent:
            raise UserError(
                f"cannot fetch {self._what.shown}: it brings less than {LEAST_RATE} bytes a second; try again later, "
                "it goes on where it stopped, or fetch it by hand and give the file"
            )
        self._since, self._had = time.monotonic(), came


def refuse_downgrade(answer: httpx2.Response) -> None:
    """For a client's answers: raises UserError where a secure address leads to one that is not."""
    if not answer.has_redirect_location:
        return
    before = answer.request.url
    after = before.join(answer.headers["location"])
    if before.scheme == "https" and after.scheme == "http":
        raise UserError(
            f"https://{before.host} leads to http://{after.host}, where anyone on the way could "
            "change the file: look for another address"
        )


def _persist(what: Download, client: httpx2.Client, show: Show, pace: _Pace) -> None:
    import httpx2

    start = furthest = what.came
    failures = 0
    while True:
        try:
            if _attempt(what, client, show, pace):
                return
            pace.check(what.came)
        except httpx2.UnsupportedProtocol:  # redirected to what is not HTTP
            raise
        except (httpx2.TransportError, _Dropped) as error:
            pace.check(what.came)
            failures = 0 if what.came > furthest else failures + 1
            furthest = max(furthest, what.came)
            nobody = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
            if failures >= TRIES or (nobody and furthest == start):
                raise UserError(f"cannot fetch {what.shown}: {_why(error)}") from error
            time.sleep(max(PAUSE * 2**failures, error.wait if isinstance(error, _Dropped) else 0.0))


def _attempt(what: Download, client: httpx2.Client, show: Show, pace: _Pace) -> bool:
    """One request. True: the file is whole; False: what had come was of no use and is gone, so ask for everything."""
    came, version = what.came, _version_of_part(what)
    resume = {"Range": f"bytes={came}-", "If-Range": version} if came and version else {}
    with client.stream("GET", what.url, headers=resume) as answer:
        code, told = answer.status_code, _version(answer.headers)
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("content-range", ""))
        if resume and code in (206, 416):
            fits = span is not None and told in (None, version)
            if fits and code == 416 and span is not None and span[2] == str(came):
                return True  # all of it had come before
            if not fits or code == 416 or span is None or span[1] != str(came):
                what.discard()
                return False
            whole = int(span[2]) if span[2] != "*" else None
        else:
            _accept(what, answer)
            length = answer.headers.get("content-length", "")
            came, whole = 0, int(length) if length.isdecimal() else None
        _check_room(what, came, whole)
        looked = came
        with what.part.open("ab" if came else "wb") as file:
            if not came:
                write_json(what.note, {"url": what.shown, "version": told})
            show(came, whole)
            for chunk in answer.iter_raw():
                file.write(chunk)
                came += len(chunk)
                _check_size(what, came)
                pace.check(came)
                if came - looked >= LOOK_BYTES:
                    looked = came
                    _check_room(what, came, whole)
                show(came, whole)
            file.flush()
            os.fsync(file.fileno())
    if whole is not None and came != whole:
        raise _Dropped(f"the connection ended after {came} of {whole} bytes; try again, it goes on there")
    return True


def _accept(what: Download, answer: httpx2.Response) -> None:
    """Raises unless the answer brings the whole file: UserError where asking again cannot help."""
    code, kind = answer.status_code, answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if code in BUSY:
        wait = re.fullmatch(r"\d+", answer.headers.get("retry-after", ""))  # or a date: not worth reading
        raise _Dropped(f"the server is busy ({code}); try again later", min(float(wait[0]), 30.0) if wait else 0.0)
    if code in (404, 410):
        raise UserError(f"there is no {what.shown} (the server answers {code}): check the address")
    if code in (401, 403):
        raise UserError(
            f"the server refuses {what.shown} ({code}): it may ask for a login; fetch it by hand and give the file"
        )
    if code != 200:
        raise UserError(f"cannot fetch {what.shown}: the server answers {code} {answer.reason_phrase}; try again later")
    if kind in ("text/html", "application/xhtml+xml"):
        raise UserError(f"{what.shown} is a web page, not weights: {direct(what.url)}")
    if answer.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise UserError(f"{what.shown} is sent compressed though asked not to: fetch it by hand and give the file")


def direct(url: str) -> str:
    """What to do about a link that leads to a page about the file."""
    if "/blob/" in url:
        return "write /resolve/ (Hugging Face) or /raw/ (GitHub) for /blob/ in its address"
    return "give the direct link to the file, or fetch it by hand and give the file"


def no_weights(head: bytes) -> str:
    """What a file is that begins so and cannot be weights, as the end of a sentence; empty if it can."""
    if head[4:9] == b"\0\0\0\0{":  # safetensors, whose length may look like any sign
        return ""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "is empty"
    if text.startswith(b"<"):
        return "is a web page, not weights"
    if text.startswith((b"{", b"[")):
        return "is JSON, as servers answer where something is wrong, not weights"
    return "is a Git LFS pointer, not weights" if text.startswith(b"version https://git-lfs") else ""


def _version(headers: Mapping[str, str]) -> str | None:
    """What If-Range may name: a strong ETag, else the date of the last change."""
    tag = headers.get("etag", "")
    return tag if tag.startswith('"') else headers.get("last-modified")


def _version_of_part(what: Download) -> str | None:
    """The version that came so far is of; None if that is not known."""
    try:
        note: dict[str, str | None] = read_json(what.note, dict[str, str | None])
    except (FileNotFoundError, Damaged):
        return None
    return note.get("version")


def _check_size(what: Download, size: int) -> None:
    if size > MOST_BYTES:
        raise UserError(
            f"{what.shown} is larger than {_told(MOST_BYTES)}: if you want it, fetch it by hand and give the file"
        )


def _check_room(what: Download, came: int, whole: int | None) -> None:
    if whole is not None:
        _check_size(what, whole)
    free, left = shutil.disk_usage(what.part.parent).free, max(0, (whole or came) - came)
    if left + SPARE_BYTES > free:
        needed = _told(left) if left else "more"
        raise UserError(
            f"{what.shown} needs {needed} and {what.part.parent} has {_told(free)} free: make room, or"
            " set ANYRES_CACHE to a folder on another disk"
        )


def _told(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _why(error: BaseException) -> str:
    """A failed connection in a user's words, with what to do."""
    import socket
    import ssl

    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, _Dropped):
        return first_line(error)
    if any(isinstance(c, socket.gaierror) for c in causes):
        return "its host is not known; check the address and that this machine is online"
    if any(isinstance(c, ssl.SSLError) for c in causes):
        return (
            f"the connection is not secure ({first_line(error)}); check the address, this machine's clock and "
            "certificates"
        )
    if any(isinstance(c, ConnectionRefusedError) for c in causes):
        return "the connection is refused; check the address and its port, or try again later"
    if any(isinstance(c, TimeoutError) for c in causes):
        return "the server does not answer in time; try again, it goes on where it stopped"
    return f"the connection failed ({first_line(error)}); try again, it goes on where it stopped"


@contextmanager
def _progress(what: Download) -> Iterator[Show]:
    """How much came of how much: a bar on stderr if that is a terminal, else one line at the beginning."""
    from rich import get_console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    if not get_console().is_terminal:
        print(f"Fetching {what.shown} ...", file=sys.stderr)
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        task = progress.add_task(what.part.name.removesuffix(".part"), total=None)
        yield lambda came, whole: progress.update(task, completed=came, total=whole)
