"""What is fetched stays what was asked for, where it belongs: no way down to http, no way out of the cache.

Situations: https that leads to http; ``..`` in hub ids, revisions, file names, ETags and commits; an endpoint without
https; a body without length that fills the disk; next to nothing a second, in one connection or in many; answers that
are pages or JSON, with a byte-order mark; bodies cut where no length is told; damaged notes beside files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from anyres.config import UserError
from anyres.models import download
from anyres.models.download import refuse_downgrade
from anyres.models.fetch import _place, fetch, is_remote
from tests.models.test_fetch import Handler, Server

COMMIT = "0" * 40


@contextmanager
def served(server: Server) -> Iterator[Server]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with served(Server()) as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ANYRES_OFFLINE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE", 0.001)
    return tmp_path / "cache"


def refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450


@pytest.mark.parametrize("end", ["http://mirror.example/w.pth", "http://127.0.0.1/w.pth", "http://169.254.169.254/"])
def test_https_never_falls_to_http(end: str) -> None:
    """The client that fetches, over a transport without a network."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.scheme == "http" and request.url.host != "start.example":
            raise AssertionError("it was asked")
        return httpx2.Response(302, headers={"Location": "https://b.example/w" if "a.e" in str(request.url) else end})

    hooks = {"response": [refuse_downgrade]}
    with httpx2.Client(transport=httpx2.MockTransport(answer), follow_redirects=True, event_hooks=hooks) as client:
        for start in ("https://a.example/w.pth", "https://c.example/w.pth"):
            with pytest.raises(UserError, match=r"leads to http://"):
                client.get(start)


@pytest.mark.parametrize(
    "source",
    [
        "hf:a/b@../../../../x:file.pth",
        "hf:a/b@main:../../x.pth",
        "hf:a/b:/etc/passwd",
        "hf:a/b:sub//x.pth",
        "hf:a/b:..",
        "hf:a/b@.:x.pth",
        "hf:a/b@x/..:w.pth",
        "hf:a/b:..\\x.pth",
        "hf:../b:x.pth",
    ],
)
def test_a_hub_id_does_not_climb(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    refused(source, "hub id")
    assert not is_remote(source.removeprefix("hf:")) or source.startswith("hf:../")


class Hostile(Handler):
    """A hub whose headers lead elsewhere."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.close_connection = True
        body = b"anything"
        self.send_response(200)
        found = {"X-Repo-Commit": COMMIT, "ETag": '"abc"', "Content-Length": str(len(body)), "Connection": "close"}
        for key, value in (found | self.server.headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    server.RequestHandlerClass = Hostile
    place = f"http://127.0.0.1:{server.port}"
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return server


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"../../../../escaped"'},
        {"ETag": 'W/"/tmp/escaped"'},
        {"X-Linked-Etag": '"a/../../../escaped"'},
        {"X-Repo-Commit": "../../../escaped"},
        {"ETag": '".."'},
    ],
)
def test_what_a_hub_answers_makes_no_path(headers: dict[str, str], hub: Server, tmp_path: Path) -> None:
    hub.headers = headers
    refused("hf:a/b:x.pth", "is no hub: its header")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.suffix == ".lock" for path in written), written


def test_an_honest_hub_is_read_and_a_foreign_one_wants_https(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch("hf:a/b:x.pth").read_bytes() == b"anything"
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example")
    refused("hf:a/b:x.pth", "HF_ENDPOINT=http://mirror.example is not secure")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "not found"}', "is JSON"),
        (b"\xef\xbb\xbf  <!DOCTYPE html>", "is a web page"),
        (b"\xef\xbb\xbf[1]", "is JSON"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_what_is_no_weights_is_not_kept(body: bytes, message: str, server: Server, cache: Path) -> None:
    server.body = body
    refused(server.url(), message)
    assert not _place(server.url()).file.exists()


def test_a_body_that_is_cut_where_no_length_is_told_is_not_kept(server: Server, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1000)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth")
    server.with_length = False
    for name in ("a.safetensors", "a.pth"):
        whole = (tmp_path / name).read_bytes()
        for end in (100, len(whole) // 2, len(whole) - 1):
            server.body = whole[:end]
            refused(server.url(f"{end}/{name}"), "came cut short")
        server.body = whole
        assert fetch(server.url(name)).read_bytes() == whole


def test_a_safetensors_file_may_begin_with_any_byte(server: Server) -> None:
    for first in b"<{[ \xef":
        server.body = (first + 256).to_bytes(8, "little") + b"{}" + b" " * (first + 254)
        assert fetch(server.url(f"{first}.safetensors")).read_bytes() == server.body


def test_a_body_without_length_leaves_room_on_the_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.with_length = False
    monkeypatch.setattr(download, "LOOK_BYTES", 100_000)
    free = iter([10**9, 10**9, 10**9, 10**6])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": next(free)}))
    refused(server.url(), "make room")


def test_next_to_nothing_a_second_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WINDOW", 0.2)
    monkeypatch.setattr(download, "LEAST_RATE", 10**9)
    server.pause = 0.05
    refused(server.url("slow.pth"), "bytes a second")
    server.pause, server.cut = 0.0, list(range(1, 5000))  # a byte more in every connection
    refused(server.url("cut.pth"), "bytes a second")


@pytest.mark.parametrize("note", [b"", b"[]", b'{"sha256": 3}', b"\xff", b"[" * 10**5])
def test_a_damaged_record_is_named(note: bytes, server: Server) -> None:
    path = fetch(server.url())
    record = path.with_name(path.name + ".json")
    record.write_bytes(note)
    refused(server.url(), "is damaged: delete it and")
