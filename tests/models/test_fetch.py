"""Fetching: every way in which a download can go wrong, against a real server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anyres.models.download as download
import anyres.models.fetch as module
from anyres.config import UserError
from anyres.models.fetch import fetch, is_remote

DATA = bytes(range(256)) * 4000  # 1 MB
OTHER = bytes(reversed(DATA))
SHA, OTHER_SHA = hashlib.sha256(DATA).hexdigest(), hashlib.sha256(OTHER).hexdigest()


class Server(ThreadingHTTPServer):
    """What it serves and how it fails; ``asked`` keeps each request's Range."""

    daemon_threads = True
    body = DATA
    etag: str | None = '"one"'
    kind = "application/octet-stream"
    ranges = True  # honoured
    heeds_if_range = True
    cut: list[int]  # of each coming answer, bytes sent before the connection is cut
    status: list[int]  # of each coming answer that is an error
    headers: dict[str, str]
    with_length = True
    pause = 0.0  # between two pieces
    asked: list[str | None]
    if_range: str | None = None  # of the latest request

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut, self.status, self.headers, self.asked = [], [], {}, []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, name: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self.port}/models/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        server.if_range = self.headers["If-Range"]
        self.close_connection = True
        if server.status:
            self.answer(server.status.pop(0), b"sorry", dict(server.headers))
            return
        extra = {"Content-Type": server.kind} | server.headers
        if server.etag:
            extra["ETag"] = server.etag
        start, size = 0, len(server.body)
        current = not server.heeds_if_range or server.if_range == server.etag
        if wanted and server.ranges and current:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.answer(416, b"", extra | {"Content-Range": f"bytes */{size}"})
                return
            extra["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self.answer(206 if start else 200, server.body[start:], extra)

    def answer(self, status: int, body: bytes, extra: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (extra | {"Connection": "close"}).items():
            self.send_header(key, value)
        if self.server.with_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = min(self.server.cut.pop(0) if self.server.cut and status < 300 else len(body), len(body))
        for at in range(0, end, 50_000):
            self.wfile.write(body[at : min(at + 50_000, end)])
            time.sleep(self.server.pause)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ANYRES_OFFLINE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE", 0.001)
    return tmp_path / "cache"


def refused(source: str, message: str, **options: Any) -> str:
    """The one line with which ``fetch`` refuses; it names the source."""
    with pytest.raises(UserError, match=message) as caught:
        fetch(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert source.partition("?")[0] in line, line
    assert len(line) < 450, line
    return line


def beside(url: str) -> set[str]:
    """What lies in the URL's folder, without the lock."""
    folder = module._place(url).file.parent
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")} if folder.is_dir() else set()


# --- a good server ------------------------------------------------------------------------------------------------


def test_fetched_once_recorded_and_checked_after(
    server: Server, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = server.url()
    path = fetch(url)
    assert path.read_bytes() == DATA
    assert path.name == "weights.pth"
    assert path.is_relative_to(cache / "weights")
    assert capfd.readouterr().err == f"Fetching {url} ...\n"
    record = path.with_name("weights.pth.json")
    assert json.loads(record.read_text()) == {"url": url, "sha256": SHA}
    assert stat.S_IMODE(record.stat().st_mode) == 0o644
    assert beside(url) == {"weights.pth", "weights.pth.json"}
    assert fetch(f"  {url}\n") == fetch(url, sha256=SHA) == fetch(url, sha256=SHA[:8].upper()) == path
    assert server.asked == [None]
    assert capfd.readouterr().err == ""


def test_a_file_changed_after_it_was_fetched_is_refused(server: Server) -> None:
    path = fetch(server.url())
    path.write_bytes(OTHER)
    line = refused(server.url(), "has changed since it was fetched")
    assert OTHER_SHA[:8] in line
    assert SHA[:8] in line
    assert f"{path} " in line
    assert "delete it to fetch" in line
    path.unlink()
    assert fetch(server.url()).read_bytes() == DATA
    path.with_name(path.name + ".json").write_text("{")
    refused(server.url(), r"weights.pth.json is damaged: delete it and weights.pth")


def test_a_file_put_there_by_hand_is_recorded(server: Server) -> None:
    place = module._place(server.url())
    place.file.parent.mkdir(parents=True)
    place.file.write_bytes(OTHER)
    assert fetch(server.url()) == place.file
    assert json.loads(place.beside(".json").read_text())["sha256"] == OTHER_SHA
    assert server.asked == []


def test_a_cache_that_may_only_be_read_is_enough(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(server.url())
    path.with_name(path.name + ".json").unlink()

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "write_json", denied)
    assert fetch(server.url()) == path


def test_no_length_and_chunks(server: Server) -> None:
    server.with_length = False  # the end is where the connection ends
    assert fetch(server.url()).read_bytes() == DATA


def test_redirects_lead_to_the_file_and_only_over_http(server: Server) -> None:
    with Server() as first:
        threading.Thread(target=first.serve_forever, args=(0.02,), daemon=True).start()
        first.status, first.headers = [302], {"Location": server.url("else.pth")}
        assert fetch(first.url()).read_bytes() == DATA
        first.status, first.headers = [302], {"Location": "ftp://127.0.0.1/a.pth"}
        refused(first.url("b.pth"), "cannot fetch .*unsupported protocol 'ftp://'; check the address")
        first.status, first.headers = [302] * 12, {"Location": first.url("c.pth")}
        refused(first.url("c.pth"), "cannot fetch .*redirects; check the address")
        first.shutdown()


def test_two_urls_that_end_alike_are_two_files(server: Server) -> None:
    one = fetch(server.url("a.pth?version=1"))
    server.body = OTHER
    two = fetch(server.url("a.pth?version=2"))
    assert (one.name, two.name) == ("a.pth", "a.pth")
    assert (one.read_bytes(), two.read_bytes()) == (DATA, OTHER)


# --- interrupted ---------------------------------------------------------------------------------------------------


def test_a_dropped_connection_is_taken_up_again(server: Server) -> None:
    server.cut = [300_000, 200_000, 0, 100_000]
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked[0] is None
    starts = [int(re.sub(r"\D", "", asked or "")) for asked in server.asked[1:]]
    assert starts == [300_000, 500_000, 500_000, 600_000]


def test_without_a_length_a_cut_in_chunks_is_noticed(server: Server) -> None:
    server.with_length, server.headers, server.cut = False, {"Transfer-Encoding": "chunked"}, [0] * 5
    refused(server.url(), "cannot fetch .*the connection failed .*; try again")


def test_it_gives_up_after_five_tries_that_bring_nothing(server: Server) -> None:
    server.cut = [1000] + [0] * 9
    refused(server.url(), "the connection (failed|ended)")
    assert len(server.asked) == 6
    assert beside(server.url()) == {"weights.pth.part", "weights.pth.part.json"}
    server.cut = []
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked[-1] == "bytes=1000-"


def test_a_server_that_is_always_cut_at_the_same_place_is_given_up(server: Server) -> None:
    server.ranges, server.cut = False, [400_000] * 20
    refused(server.url(), "cannot fetch")
    assert len(server.asked) == 1 + download.TRIES


def stopped(server: Server, at: int = 300_000) -> Path:
    """The .part that a download leaves that was stopped after ``at`` bytes."""
    server.cut = [at] + [0] * 9
    with pytest.raises(UserError):
        fetch(server.url())
    server.cut = []
    server.asked.clear()
    part = module._place(server.url()).beside(".part")
    assert part.read_bytes() == DATA[:at]
    return part


def test_a_server_without_ranges_sends_all_again(server: Server) -> None:
    stopped(server)
    server.ranges = False
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == ["bytes=300000-"]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(heeds_if_range: bool, server: Server) -> None:
    stopped(server)
    server.body, server.etag, server.heeds_if_range = OTHER, '"two"', heeds_if_range
    assert fetch(server.url()).read_bytes() == OTHER
    assert server.asked == ["bytes=300000-"] + [None] * (not heeds_if_range)


def test_a_file_that_became_shorter_is_fetched_from_the_start(server: Server) -> None:
    stopped(server)
    server.body, server.etag, server.heeds_if_range = OTHER[:1000], '"two"', False
    assert fetch(server.url()).read_bytes() == OTHER[:1000]
    assert server.asked == ["bytes=300000-", None]


def test_all_had_come_before(server: Server) -> None:
    part = stopped(server)
    part.write_bytes(DATA)
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA)}-"]


def test_more_had_come_than_there_is(server: Server) -> None:
    part = stopped(server)
    part.write_bytes(DATA + b"more")
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA) + 4}-", None]


@pytest.mark.parametrize("note", [None, "", "[]", "{}", '{"version": null}', '{"version": 3}'])
def test_a_part_of_unknown_version_is_fetched_from_the_start(note: str | None, server: Server) -> None:
    part = stopped(server)
    part.write_bytes(b"from elsewhere")
    path = part.with_name(part.name + ".json")
    if note is None:
        path.unlink()
    else:
        path.write_text(note)
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [None]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_it_starts_anew(etag: str | None, server: Server) -> None:
    server.etag, server.cut = etag, [300_000]
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [None, None]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_the_date_of_the_last_change_serves(etag: str | None, server: Server) -> None:
    server.etag, server.headers = etag, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.cut, server.heeds_if_range = [300_000], False
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [None, "bytes=300000-"]
    assert server.if_range == server.headers["Last-Modified"]


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=4), changes=st.lists(st.booleans(), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_however_often_it_is_cut_and_changed_the_file_is_one_version(cuts: list[int], changes: list[bool]) -> None:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
        for i, (cut, change) in enumerate(zip(cuts, changes, strict=False)):
            server.body, server.etag = (OTHER, '"two"') if change else (DATA, '"one"')
            server.cut, server.heeds_if_range = [cut] + [0] * 9, i % 2 == 0
            try:
                assert fetch(server.url()).read_bytes() == server.body
                break
            except UserError:
                continue
        else:
            server.cut = []
            server.body, server.etag = (OTHER, '"two"') if changes[-1] else (DATA, '"one"')
            assert fetch(server.url()).read_bytes() == server.body
        server.shutdown()


# --- another process ----------------------------------------------------------------------------------------------

CODE = "import sys; from anyres.models.fetch import fetch; print(fetch(sys.argv[1]))"


def process(url: str, **options: Any) -> subprocess.Popen[str]:
    heed = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background does not
    )
    command = [sys.executable, "-c", heed + options.pop("code", CODE), url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_of_two_processes_one_fetches(server: Server) -> None:
    server.pause = 0.12  # about 2.5 s in all
    both = [process(server.url()) for _ in range(2)]
    answers = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], answers
    assert {out.strip() for out, _ in answers} == {str(fetch(server.url()))}
    assert server.asked == [None]
    said = sorted(err for _, err in answers)
    assert said == [f"Fetching {server.url()} ...\n", "Waiting for another process that fetches weights.pth ...\n"]


def test_ctrl_c_keeps_what_came(server: Server) -> None:
    server.pause = 0.1
    part = module._place(server.url()).beside(".part")
    child = process(server.url())
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size >= 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in err
    came = part.stat().st_size
    assert 100_000 <= came < len(DATA)
    assert part.read_bytes() == DATA[:came]
    server.pause = 0.0
    assert fetch(server.url()).read_bytes() == DATA
    assert server.asked == [None, f"bytes={came}-"]


def test_killed_while_it_fetches(server: Server) -> None:
    server.pause = 0.1
    part = module._place(server.url()).beside(".part")
    child = process(server.url())
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size >= 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.communicate(timeout=60)
    server.pause = 0.0
    assert fetch(server.url()).read_bytes() == DATA  # the lock died with it
    assert (server.asked[-1] or "").startswith("bytes=")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_terminal_sees_a_bar(server: Server) -> None:
    main, side = os.openpty()
    server.pause = 0.02
    code = f"from anyres.cli.console import start_logging; start_logging(); {CODE}"  # as every verb does
    command = [sys.executable, "-c", code, server.url("deit_[bold]tiny.pth")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=side, env={**os.environ, "TERM": "xterm"}) as child:
        os.close(side)
        seen = b""
        while True:
            try:
                piece = os.read(main, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            seen += piece
        assert child.wait(timeout=60) == 0
    os.close(main)
    assert b"bold_tiny.pth" in seen
    assert b"MB" in seen
    assert b"Fetching" not in seen


def test_importing_is_light() -> None:
    heavy = ("httpx2", "huggingface_hub", "rich", "torch", "filelock", "platformdirs")
    code = f"import sys, anyres.models.fetch; print([m for m in {heavy} if m in sys.modules])"
    assert process("", code=code).communicate(timeout=60)[0] == "[]\n"


# --- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "tries"),
    [
        (404, r"there is no http://.*weights.pth \(the server answers 404\): check the address", 1),
        (410, "there is no http://", 1),
        (401, r"the server refuses http://.*\(401\): it may ask for a login", 1),
        (403, r"the server refuses http://.*\(403\): .*fetch it by hand", 1),
        (418, "the server answers 418", 1),
        (500, r"cannot fetch .*: the server is busy \(500\); try again later", 5),
        (503, r"the server is busy \(503\)", 5),
    ],
)
def test_answers_that_are_errors(status: int, message: str, tries: int, server: Server) -> None:
    server.status = [status] * 9
    refused(server.url(), message)
    assert len(server.asked) == tries
    assert beside(server.url()) == set()


def test_a_busy_server_is_asked_again_when_it_says(server: Server) -> None:
    server.status, server.headers = [503, 429], {"Retry-After": "1"}
    began = time.monotonic()
    assert fetch(server.url()).read_bytes() == DATA
    assert time.monotonic() - began >= 2


def test_a_web_page_is_refused(server: Server) -> None:
    server.kind, server.body = "text/html; charset=utf-8", b"<!DOCTYPE html>"
    refused(server.url(), "is a web page, not weights: give the direct link")
    refused(server.url("blob/main/a.pth"), "is a web page, not weights: write /resolve/")
    assert beside(server.url()) == set()
    server.kind = "application/octet-stream"
    refused(server.url(), "is a web page, not weights: give the direct link")
    server.body = b"version https://git-lfs.github.com/spec/v1\noid sha256:00"
    refused(server.url(), "is a Git LFS pointer, not weights")
    server.body = b""
    refused(server.url(), "is empty")
    assert beside(server.url()) == set()


def test_compressed_against_our_wish(server: Server) -> None:
    server.headers = {"Content-Encoding": "gzip"}
    refused(server.url(), "is sent compressed though asked not to")


def test_the_digest_in_a_name_is_checked_before_the_file_is_kept(server: Server) -> None:
    good, bad = server.url(f"deit_tiny-{SHA[:8]}.pth"), server.url(f"deit_tiny-{OTHER_SHA[:8]}.pth")
    assert fetch(good).read_bytes() == DATA
    line = refused(
        bad, f"has another SHA-256 than expected, it begins {SHA[:8]}, not {OTHER_SHA[:8]}, and was not kept"
    )
    assert "try again" in line
    assert beside(bad) == set()
    assert fetch(bad, sha256=SHA).read_bytes() == DATA  # what is asked for goes before the name
    refused(bad, "is not the file wanted")
    assert fetch(server.url("model-20240131.pth")).read_bytes() == DATA  # a date is no digest
    assert fetch(server.url("epoch-00000300.pth"), sha256=SHA).read_bytes() == DATA


def test_a_digest_asked_for_is_checked(server: Server) -> None:
    refused(server.url(), f"it begins {SHA[:8]}, not {OTHER_SHA[:8]}", sha256=OTHER_SHA)
    assert beside(server.url()) == set()
    path = fetch(server.url(), sha256=SHA[:12])
    refused(server.url(), r"is not the file wanted.*delete it to fetch .*, or correct the digest", sha256=OTHER_SHA)
    assert path.read_bytes() == DATA
    for wrong in ("", "12ab", "xyz45678", SHA + "0"):
        with pytest.raises(UserError, match="is no SHA-256: give its 64 hexadecimal digits or at least the first 8"):
            fetch(server.url(), sha256=wrong)


@pytest.mark.parametrize("name", ["ANYRES_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_only_what_is_in_the_cache(name: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(server.url())
    monkeypatch.setenv(name, "1")
    assert fetch(server.url()) == path
    line = refused(server.url("b.pth"), "is not in the cache and the network is switched off: unset ANYRES_OFFLINE")
    target = Path(re.search(r"copy the file to (\S+)$", line)[1])  # type: ignore[index]
    target.parent.mkdir(parents=True)
    target.write_bytes(DATA)
    assert fetch(server.url("b.pth")) == target
    assert server.asked == [None]
    monkeypatch.setenv(name, "0")
    assert not module.offline()


def test_nobody_is_there(server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        refused(f"http://127.0.0.1:{port}/a.pth", "the connection is refused; check the address and its port")
    refused("http://nowhere.invalid/a.pth", "its host is not known; check the address and that this machine is online")
    refused(f"https://127.0.0.1:{server.port}/a.pth", r"the connection is not secure \(.*\); check")


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx2

    real = httpx2.Timeout
    monkeypatch.setattr(httpx2, "Timeout", lambda *_, **__: real(0.2))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        refused(f"http://127.0.0.1:{mute.getsockname()[1]}/a.pth", "does not answer in time; try again")


def test_a_certificate_nobody_vouches_for(server: Server, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    try:
        subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    refused(f"https://127.0.0.1:{server.port}/a.pth", r"the connection is not secure \(.*certificate.*\); check the")


def test_too_large_or_no_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST_BYTES", 10**6)
    refused(server.url(), "is larger than 1 MB: if you want it, fetch it by hand and give the file")
    assert beside(server.url()) == set()
    server.with_length = False
    refused(server.url("b.pth"), "is larger than 1 MB")
    monkeypatch.undo()


def test_no_room(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SPARE_BYTES", 10**18)
    refused(server.url(), r"needs 1 MB and .* has \d+\.?\d* [GM]B free: make room, or set ANYRES_CACHE")
    assert beside(server.url()) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_the_disk_fills_up_on_the_way(server: Server) -> None:
    part = module._place(server.url()).beside(".part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    refused(server.url(), "cannot keep .*: No space left on device; make room and try again, .* set ANYRES_CACHE")
    part.unlink()
    assert fetch(server.url()).read_bytes() == DATA


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "file"))
    refused(server.url(), "cannot keep http://.*: .*; set ANYRES_CACHE to a folder of yours")
    assert server.asked == []


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["ftp://a/b.pth", "file:///etc/passwd", "weights.pth", "a/b/c", "", "hf:", "/tmp/a"])
def test_what_is_neither_address_nor_hub_id(source: str) -> None:
    refused(source, "is neither an address .* nor a hub id")


@pytest.mark.parametrize("source", ["http://", "https:///a.pth", "http://[::1/a.pth", "http://a:b/c", "http://a/b c"])
def test_malformed_addresses(source: str) -> None:
    refused(source, "is no address")


def test_passwords_and_signatures_are_not_shown(server: Server) -> None:
    server.status = [404]
    with pytest.raises(UserError) as caught:
        fetch(f"http://me:secret@127.0.0.1:{server.port}/a.pth?signature=geheim#part")
    assert f"http://127.0.0.1:{server.port}/a.pth?..." in str(caught.value)
    assert not re.search("secret|geheim|me:", str(caught.value))


@given(st.text(max_size=60), st.text(max_size=200))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_the_address_its_file_stays_in_the_cache(host: str, path: str) -> None:
    try:
        place = module._place(f"https://{host}/{path}")
    except UserError:
        return
    folder, root = place.file.parent, module.cache_folder()
    assert folder.parent == root
    assert re.fullmatch(r"[\w.-]+-[0-9a-f]{10}", folder.name, re.ASCII)
    assert re.fullmatch(r"[\w+-][\w.+-]*", place.file.name, re.ASCII)
    assert len(place.file.name) <= 100
    assert module._place(place.url) == place


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://a/b.pth", True), ("http://a/b", True), ("ftp://a/b", True), ("hf:a/b", True), ("hf:a/b@c:d", True),
        ("owner/name", True), ("owner/name@refs/pr/1:sub/x.pth", True), ("owner/name:x.safetensors", True),
        ("name", False), ("a/b/c", False), ("./a", False), ("../a", False), ("/a/b", False), ("~/a", False),
        ("runs/x.pth", False), ("runs/x.safetensors", False), ("hf:runs/x.pth", True), ("C:\\a\\b", False),
        ("runs/here", False), ("", False),
    ],
)  # fmt: skip
def test_is_remote(source: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_remote(source) is expected
    assert not is_remote(Path(source))


# --- the hub ------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(home: Path, files: dict[str, bytes], repo: str = "someone/model", revision: str = "main") -> Path:
    """huggingface_hub's own layout: blobs under their SHA-256, a snapshot of links to them, a named revision."""
    root = home / "hub" / ("models--" + repo.replace("/", "--"))
    for name, content in files.items():
        blob, link = root / "blobs" / hashlib.sha256(content).hexdigest(), root / "snapshots" / COMMIT / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HF_HOME as huggingface_hub sees it: it reads the environment when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["pytorch_model.bin", "model.safetensors", "a.pth"], "model.safetensors"),
        (["pytorch_model.bin", "other.safetensors"], "pytorch_model.bin"),
        (["config.json", "deit.pth", "optimizer.pt", "training_args.bin"], "deit.pth"),
        (["a.pth", "b.pth", "sub/c.safetensors"], "sub/c.safetensors"),
    ],
)
@pytest.mark.parametrize("source", ["hf:someone/model", "someone/model@main"])
def test_which_file_of_a_repository(names: list[str], taken: str, source: str, home: Path) -> None:
    hub_cache(home, {name: name.encode() for name in names})
    assert fetch(source).read_bytes() == taken.encode()


def test_files_and_revisions_of_a_repository(home: Path) -> None:
    root = hub_cache(home, {"a.pth": b"a", "b.pth": b"b", "sub/c.pt": b"c"}, revision="v1")
    assert fetch("hf:someone/model@v1:b.pth").read_bytes() == b"b"
    assert fetch(f"someone/model@{COMMIT}:sub/c.pt") == root / "snapshots" / COMMIT / "sub" / "c.pt"
    refused("hf:someone/model@v1", r"has 2 files of weights \(a.pth, b.pth\): name one, as in hf:someone/model:a.pth")
    refused("hf:someone/model@v1:x.pth", "is not in the hub's cache, and the hub is switched off: unset ANYRES_OFFLINE")
    refused("hf:someone/model", "is not in the hub's cache")
    line = refused("runs/first", "there is no file or folder runs/first here, and as a hub id it is not in the hub's")
    assert "switched off" in line


def test_a_repository_without_weights(home: Path) -> None:
    hub_cache(home, {"config.json": b"{}"})
    refused("hf:someone/model", r"has no .safetensors or .pth: name its file of weights")


def test_digests_of_the_hub(home: Path) -> None:
    root = hub_cache(home, {"model.safetensors": DATA})
    assert fetch("hf:someone/model", sha256=SHA[:10]).read_bytes() == DATA
    refused("hf:someone/model", f"its SHA-256 begins {SHA[:8]}, not {OTHER_SHA[:8]}; .*correct the", sha256=OTHER_SHA)
    (root / "blobs" / SHA).write_bytes(OTHER)
    line = refused("hf:someone/model", f"its SHA-256 begins {OTHER_SHA[:8]}, not {SHA[:8]}; delete .*{SHA} to fetch")
    assert line.endswith("to fetch it anew")


def test_no_hub_ids(home: Path) -> None:
    for source in ("hf:..a/b", "hf:a--b/c..d", "hf:-a/b"):
        refused(source, "is no hub id: write hf:owner/name")


HUB_CODE = """
import sys, time
time.sleep = lambda seconds: None  # huggingface_hub tries again for half a minute
from anyres.config import UserError
from anyres.models.fetch import fetch
for source in sys.argv[1].split():
    try:
        print(fetch(source).read_bytes()[:9])
    except UserError as error:
        print(error)
"""


class Hub(Handler):
    """A hub of one repository; the others are missing, for members only, or broken."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.close_connection = True
        path, found = self.path.partition("?")[0], {"X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        if "/broken" in path:
            self.answer(500, b"", {})
        elif "/gated" in path:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "a\nb"})
        elif "/someone/model" not in path:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif "/nowhere" in path:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/someone/model/tree/"):
            files = [{"type": "file", "path": n, "size": 9, "oid": "1" * 40} for n in ("README.md", "deit.pth")]
            self.answer(200, json.dumps(files).encode(), found)
        elif path.endswith("/deit.pth"):
            self.answer(200, b"the bytes", found | {"ETag": f'"{hashlib.sha256(b"the bytes").hexdigest()}"'})
        else:
            self.answer(404, b"", found | {"X-Error-Code": "EntryNotFound"})

    def answer(self, status: int, body: bytes, extra: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (extra | {"Content-Length": str(len(body)), "Connection": "close"}).items():
            self.send_header(key, value.replace("\n", " "))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def test_a_hub_on_this_machine(server: Server, tmp_path: Path) -> None:
    """The real client against a small hub: found, fetched once, refused in one line, and offline from the cache."""
    server.RequestHandlerClass = Hub
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{server.port}"}
    sources = (
        "hf:someone/model someone/model@main:deit.pth someone/model:x.pth someone/model@nowhere someone/else"
        " hf:gated/one:a.pth hf:broken/one"
    )
    out, err = process(sources, code=HUB_CODE, env=env).communicate(timeout=120)
    expected = (
        r"b'the bytes'",
        r"b'the bytes'",
        r"someone/model:x.pth: someone/model has no file 'x.pth'; see its list of files on the hub",
        r"someone/model@nowhere: someone/model has no revision 'nowhere'; see its branches and tags on the hub",
        r"there is no file or folder someone/else here, and as a hub id it is not on the Hugging Face hub: check .*",
        r"hf:gated/one:a.pth asks for its owner's consent: get it on the hub's page, then run `hf auth login`",
        r"hf:broken/one is not in the hub's cache, and the hub is not reached: try again online",
    )
    lines = out.splitlines()
    assert len(lines) == len(expected), out + err
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line

    asked = len(server.asked)
    out, err = process("hf:someone/model", code=HUB_CODE, env={**env, "HF_HUB_OFFLINE": "1"}).communicate(timeout=60)
    assert out == "b'the bytes'\n", err
    assert len(server.asked) == asked
    with socket.socket() as unused:  # online, but the hub does not answer: the cache serves
        unused.bind(("127.0.0.1", 0))
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{unused.getsockname()[1]}"
        out, err = process("hf:someone/model hf:some/other", code=HUB_CODE, env=env).communicate(timeout=120)
    lines = out.splitlines()
    assert lines[0] == "b'the bytes'", out + err
    assert lines[1] == "hf:some/other is not in the hub's cache, and the hub is not reached: try again online"
