"""The server as a process sees it: real sockets, real signals, clients that are slow or leave."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from anyres.config import UserError
from anyres.serve.app import make_app
from anyres.serve.model import ServedModel
from anyres.serve.options import Limits
from anyres.serve.server import listen, run
from tests.command import anyres, refused
from tests.serve.conftest import OPTIONS

pytest.importorskip("uvicorn")


def while_served(served: ServedModel, limits: Limits, client: Callable[[int], None]) -> tuple[object, signal.Signals]:
    """Serve in this thread while ``client(port)`` runs in another; SIGTERM follows it where it did not send one."""
    options = replace(OPTIONS, port=0, limits=limits)
    model = object.__new__(ServedModel)
    model.__dict__ = {**served.__dict__, "options": options}
    app, listener = make_app(model), listen(options)
    failed: list[BaseException] = []

    def work(port: int) -> None:
        try:
            client(port)
        except BaseException as error:
            failed.append(error)
        if not app.state.service.draining:
            os.kill(os.getpid(), signal.SIGTERM)

    def began(address: str) -> None:
        threading.Thread(target=work, args=(int(address.rpartition(":")[2]),), daemon=True).start()

    try:
        asked = run(app, listener, began)
    finally:
        listener.close()
    if failed:
        raise failed[0]
    assert asked is not None
    return app.state.service, asked


def post(port: int, photo: bytes, query: str = "") -> int:
    """The status of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", f"/predict{query}", photo, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def get(port: int, path: str) -> int:
    """The status of one request."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def until_closed(connection: socket.socket, most: float) -> bytes:
    """What comes until the server closes."""
    connection.settimeout(most)
    found = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return found
        if not part:
            return found
        found += part


def test_sigterm_under_load_loses_nothing_that_was_accepted(served: ServedModel, photo: bytes) -> None:
    statuses: Counter[int] = Counter()
    late: list[int] = []

    def client(port: int) -> None:
        ended = threading.Event()

        def ask(number: int) -> None:
            while not ended.is_set():
                try:
                    status = post(port, photo, f"?size={32 + 16 * (number % 3)}")
                except (ConnectionError, http.client.RemoteDisconnected):
                    return  # the server no longer listens: nothing was accepted
                statuses[status] += 1
                if sent.is_set():
                    late.append(status)

        sent = threading.Event()
        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask, number) for number in range(6)]
            time.sleep(0.7)
            os.kill(os.getpid(), signal.SIGTERM)
            sent.set()
            time.sleep(0.2)
            assert get(port, "/readyz") == 503
            for each in asking:
                each.result()
            ended.set()

    service, asked = while_served(served, replace(OPTIONS.limits, drain_s=0.6), client)
    assert asked == signal.SIGTERM
    counted = {
        int(sample.labels["code"]): int(sample.value)
        for metric in service.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "anyres_requests_total"
    }
    assert counted == dict(statuses), "whoever was counted has the answer"
    assert set(statuses) == {200}
    assert len(late) > 3, "after the signal requests were still answered"


def test_slow_clients_are_cut(served: ServedModel, photo: bytes) -> None:
    def client(port: int) -> None:
        def connect() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), timeout=10)

        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        silent, half, trickling, idle = connect(), connect(), connect(), connect()
        half.sendall(head[:30])
        trickling.sendall(head + b"Content-Length: 5000\r\n\r\n" + photo[:100])
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        start = time.monotonic()
        assert until_closed(silent, 8) == b""
        assert until_closed(half, 8) == b""
        said = until_closed(trickling, 8)
        assert said.startswith(b"HTTP/1.1 408"), said
        assert b"the body did not come within 0.6 s" in said
        assert until_closed(idle, 8).startswith(b"HTTP/1.1 200"), "kept alive, but not for ever"
        assert time.monotonic() - start < 5
        assert post(port, photo) == 200, "others are answered"
        for each in (silent, half, trickling, idle):
            each.close()

    while_served(served, replace(OPTIONS.limits, head_s=0.6, read_s=0.6, drain_s=0.0), client)


def test_a_client_that_leaves_takes_no_turn(served: ServedModel, photo: bytes) -> None:
    def client(port: int) -> None:
        leaving = socket.create_connection(("127.0.0.1", port), timeout=10)
        head = "POST /predict?size=500 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        leaving.sendall(f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo)
        leaving.close()
        assert post(port, photo) == 200

    service, _ = while_served(served, replace(OPTIONS.limits, drain_s=0.0), client)
    assert len(service.dispatcher.waiting) == 0
    assert not service.dispatcher._reading
    assert service.bodies.in_flight == 0


def test_too_many_at_once_are_told_to_come_again(served: ServedModel, photo: bytes) -> None:
    def client(port: int) -> None:
        held = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2)]
        for each in held:
            each.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n")
        time.sleep(0.2)
        assert post(port, photo) == 503
        assert get(port, "/healthz") == 200, "probes are answered all the same"
        for each in held:
            each.close()

    while_served(served, replace(OPTIONS.limits, in_flight=2, drain_s=0.0), client)


def test_a_port_in_use_is_one_line() -> None:
    taken = listen(replace(OPTIONS, port=0))
    taken.listen()
    try:
        with pytest.raises(UserError, match=r"cannot listen at 127\.0\.0\.1:\d+: .*give another --host or --port"):
            listen(replace(OPTIONS, port=taken.getsockname()[1]))
    finally:
        taken.close()
    with pytest.raises(UserError, match="cannot listen at no-such-host"):
        listen(replace(OPTIONS, host="no-such-host.invalid"))


def test_the_verb_serves_until_it_is_asked_to_end(folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]

    def ask_until_ready() -> None:
        for _ in range(600):
            try:
                if get(port, "/readyz") == 200:
                    break
            except OSError:
                time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask_until_ready, daemon=True)
    thread.start()
    weights, classes = folder / "weights.safetensors", folder / "classes.json"
    model = ("serve", "restv2_nano", "--weights", weights, "--classes", classes, "--sizes", "48,32", "--batch", 2)
    answer = anyres(*model, "--port", port, "--drain-seconds", 0)
    thread.join()
    assert answer.code == 143
    assert answer.err.splitlines()[-1] == "stopped by SIGTERM: everything that was accepted has been answered"
    assert "serving restv2_nano, 5 classes, eager; sizes 32, 48 px (without a curve" in answer.out
    assert f"http://127.0.0.1:{port}" in answer.out


def test_the_verb_refuses_in_one_line(folder: Path, tmp_path: Path) -> None:
    assert "lets other machines in" in refused("serve", "restv2_nano", "--host", "0.0.0.0")
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in refused("serve", "restv2_nano", "--token-file", tmp_path / "empty")
    assert "No such file" in refused("serve", "restv2_nano", "--token-file", tmp_path / "none")
    model = ("serve", "restv2_nano", "--weights", folder / "weights.safetensors", "--port", 0)
    assert "has no cascade" in refused(*model, "--cascade")
    assert "give --max-side 224 or --sizes" in refused(*model, "--max-side", 64)
