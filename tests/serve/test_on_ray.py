"""The app by Ray Serve, as a process: Python's answers from every replica, and an end that loses nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from anyres.config import UserError
from anyres.runs.opened import ModelSpec, TrainedModel
from anyres.serve.start import serve_on_cluster
from tests.command import refused
from tests.runs import free_port
from tests.serve.conftest import OPTIONS
from tests.serve.test_predict import expected

PATIENCE_S = 240


def ask(port: int, photo: bytes, size: int) -> tuple[int, dict[str, object]]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", f"/predict?size={size}", photo, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_two_replicas_answer_as_python_and_end_in_order(
    trained: TrainedModel, folder: Path, photo: bytes, tmp_path: Path
) -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    port = free_port()
    words = ["serve", "restv2_nano", "--weights", folder / "weights.safetensors", "--classes", folder / "classes.json"]
    more = ["--sizes", "32,48", "--engine", "ray", "--replicas", "2", "--port", str(port)]
    with (tmp_path / "said").open("w") as said:
        command = [sys.executable, "-m", "anyres", *map(str, words), *more]
        values = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=said, stderr=said, env=values)
    family: list[psutil.Process] = []
    try:
        end = time.monotonic() + PATIENCE_S
        while "page and API at" not in (tmp_path / "said").read_text():
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end, "it does not begin"
            time.sleep(0.5)
        family = psutil.Process(process.pid).children(recursive=True)
        assert "2 replicas" in (tmp_path / "said").read_text()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: ask(port, photo, (32, 48)[i % 2]), range(40)))
        assert Counter(status for status, _ in found) == {200: 40}
        for _, answer in found:
            python = expected(trained, photo, str(answer["size"]))
            shares = {guess["name"]: guess["probability"] for guess in answer["predictions"]}  # type: ignore[attr-defined]
            assert shares == pytest.approx(python, abs=1e-5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 143, (tmp_path / "said").read_text()
    finally:
        process.kill()
        process.wait()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def test_what_does_not_go_together_is_one_line(trained: TrainedModel, folder: Path) -> None:
    words = ("serve", "restv2_nano", "--weights", "none")
    assert "--address and --replicas go with ray" in refused(*words, "--replicas", 2)
    assert "--engine cloud: local or ray" in refused(*words, "--engine", "cloud")
    pytest.importorskip("fastapi")
    spec = ModelSpec("restv2_nano", str(folder / "weights.safetensors"), folder / "classes.json")
    with pytest.raises(UserError, match=r"anyres\[ray\]|--port 0 goes with one server"):
        serve_on_cluster(spec, replace(OPTIONS, port=0), None, None, lambda *_: None)
