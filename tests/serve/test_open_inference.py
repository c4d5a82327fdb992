"""The open inference protocol: metadata, health, JSON and bytes, and one line for every mistake."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pictures import draw
from tests.serve.conftest import Running, encoded

MODEL = "/v2/models/restv2_nano"


def ask(running: Running, inputs: list[dict[str, Any]], **more: Any) -> Any:
    return running.client.post(f"{MODEL}/infer", json={"inputs": inputs, **more})


def image_of(pixels: np.ndarray) -> dict[str, Any]:
    return {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.ravel().tolist()}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.stack([np.asarray(draw(kind, 3 * kind, 40)) for kind in (0, 1, 2)])


def test_what_the_server_says_of_itself(running: Running) -> None:
    get = running.client.get
    assert get("/v2").json()["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready", f"{MODEL}/versions/1/ready", "/readyz"):
        assert get(path).status_code == 200, path
    about = get(f"{MODEL}/versions/1").json()
    assert about == get(MODEL).json()
    assert about["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        {"name": "size", "datatype": "INT64", "shape": [2]},
    ]
    assert about["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 5]}]
    assert about["parameters"]["classes"][0] == "disc"
    for path in ("/v2/models/other", f"{MODEL}/versions/2", "/v2/models/other/ready"):
        answer = get(path)
        assert answer.status_code == 404
        assert "it is 'restv2_nano', version 1" in answer.json()["error"]


def test_a_server_that_drains_or_is_full_is_alive_and_not_ready(running: Running) -> None:
    service, get = running.app.state.service, running.client.get
    service.draining = True
    try:
        answer = get("/readyz")
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert get("/v2/health/live").status_code == get("/healthz").status_code == 200
        assert ask(running, [image_of(np.zeros((1, 8, 8, 3), np.uint8))]).status_code == 200, "still answered"
    finally:
        service.draining = False
    stuck = service.dispatcher._running
    stuck |= {-i: (0.0, service.scheduler.clock() + 1000) for i in range(1, 1 + service.model.engines)}
    try:
        assert get(f"{MODEL}/ready").status_code == 503
        answer = running.client.post("/predict", content=running.photo, headers={"content-type": "image/jpeg"})
        assert answer.status_code == 503
        assert 960 < int(answer.headers["retry-after"]) <= 1000
        assert answer.json()["retry_after_ms"] <= 1e6
    finally:
        stuck.clear()
    assert get("/readyz").status_code == 200


def test_pixels_encoded_images_and_bytes_are_one_answer(running: Running, pixels: np.ndarray) -> None:
    size = {"name": "size", "shape": [2], "datatype": "INT64", "data": [48, 64]}
    plain = ask(running, [image_of(pixels), size], id="mine").json()
    assert plain["id"] == "mine"
    assert (plain["model_name"], plain["model_version"]) == ("restv2_nano", "1")
    assert plain["parameters"] == {"sizes": ["48x64"] * 3, "reasons": ["asked"] * 3}
    (output,) = plain["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("probabilities", [3, 5], "FP32")
    rows = np.array(output["data"]).reshape(3, 5)
    assert rows.sum(1) == pytest.approx(1, abs=1e-5)
    assert abs(rows[0] - rows[1]).max() > 1e-3
    png = [base64.b64encode(encoded(Image.fromarray(each), "PNG")).decode() for each in pixels]
    as_bytes = {"name": "image", "shape": [3], "datatype": "BYTES", "data": png}
    same = ask(running, [as_bytes, size]).json()["outputs"][0]["data"]
    assert np.array(same).reshape(3, 5) == pytest.approx(rows, abs=1e-6)
    for one, row in zip(pixels, rows, strict=True):
        form = {"image": ("a.png", encoded(Image.fromarray(one), "PNG"))}
        guesses = running.client.post("/predict?size=48x64", files=form).json()["predictions"]
        assert [guess["probability"] for guess in guesses] == pytest.approx(sorted(row, reverse=True), abs=1e-5)

    head = json.dumps(
        {
            "inputs": [
                {"name": "size", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}},
                {**image_of(pixels), "data": None, "parameters": {"binary_data_size": pixels.nbytes}},
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    body = head + np.array([48, 64], "<i8").tobytes() + pixels.tobytes()
    length = "Inference-Header-Content-Length"
    answer = running.client.post(f"{MODEL}/versions/1/infer", content=body, headers={length: str(len(head))})
    split = int(answer.headers[length])
    said = json.loads(answer.content[:split])["outputs"][0]
    assert said["parameters"] == {"binary_data_size": 60}
    assert np.frombuffer(answer.content[split:], "<f4").reshape(3, 5) == pytest.approx(rows, abs=1e-6)


def test_without_a_size_the_server_chooses(running: Running, pixels: np.ndarray) -> None:
    said = ask(running, [image_of(pixels[:1])]).json()["parameters"]
    assert said == {"sizes": ["64"], "reasons": ["usual"]}
    wish = {"size": "cascade", "deadline_ms": 50_000}
    said = ask(running, [image_of(pixels[:2])], parameters=wish).json()["parameters"]
    assert said["reasons"] == ["cascade", "cascade"]


GOOD = {"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 12}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [1, 2, 2, 4]}, "another number"),
        ({"shape": [1, 2, 6], "data": [0] * 12}, "UINT8 [b, h, w, 3]"),
        ({"shape": [1, 0, 2, 3], "data": []}, "UINT8 [b, h, w, 3]"),
        ({"shape": [-1, 2, 2, 3]}, "cannot have shape"),
        ({"shape": [2**40, 2**40]}, "cannot have shape"),
        ({"data": [300] * 12}, "beyond UINT8"),
        ({"data": [0.5] * 12}, "no UINT8"),
        ({"data": ["a"] * 12}, "no UINT8"),
        ({"data": [[0], [0, 1]]}, ""),
        ({"data": [True] * 12}, "no UINT8"),
        ({"data": [2**70] * 12}, ""),
        ({"datatype": "FP64"}, "not taken here"),
        ({"datatype": "BYTES", "shape": [1], "data": ["no base64"]}, "no base64"),
        ({"datatype": "BYTES", "shape": [1], "data": [7]}, "no base64"),
        ({"datatype": "BYTES", "shape": [2], "data": ["aGk="]}, "another number"),
        ({"datatype": "BYTES", "shape": [17], "data": ["aGk="] * 17}, "1 to 16 at a time"),
        ({"data": None}, "neither data nor"),
        ({"data": None, "parameters": {"binary_data_size": 5}}, "neither data nor"),
        ({"name": "picture"}, "inputs are `image`"),
    ],
)
def test_a_wrong_image_is_one_line(running: Running, change: dict[str, Any], says: str) -> None:
    answer = ask(running, [{**GOOD, **change}])
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"", {}, 400, ""),
        (b"[]", {}, 400, ""),
        (b"[" * 100_000, {}, 400, "nested too deep"),
        (b"\xff\xfe", {}, 400, ""),
        (b'{"inputs": 5}', {}, 400, "inputs"),
        (b'{"inputs": []}', {}, 400, "inputs are `image`"),
        (b"{}", {"inference-header-content-length": "99"}, 400, "and the body has 2 bytes"),
        (b"{}", {"inference-header-content-length": "-3"}, 400, "and the body has 2 bytes"),
        (json.dumps({"inputs": [GOOD, GOOD]}).encode(), {}, 400, "comes twice"),
        (json.dumps({"inputs": [GOOD], "outputs": [{"name": "boxes"}]}).encode(), {}, 400, "no output 'boxes'"),
        (json.dumps({"inputs": [GOOD], "parameters": {"deadline_ms": "soon"}}).encode(), {}, 400, "deadline_ms is"),
        (json.dumps({"inputs": [GOOD], "parameters": {"size": "big"}}).encode(), {}, 422, "size 'big'"),
    ],
)
def test_a_wrong_request_is_one_line(
    running: Running, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    answer = running.client.post(f"{MODEL}/infer", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]


def test_a_broken_image_among_others_is_named_and_leaves_nothing(running: Running) -> None:
    good = io.BytesIO()
    draw(0, 0, 30).save(good, "PNG")
    data = [base64.b64encode(each).decode() for each in (good.getvalue(), b"broken")]
    answer = ask(running, [{"name": "image", "shape": [2], "datatype": "BYTES", "data": data}])
    assert answer.status_code == 422
    assert "no JPEG" in answer.json()["error"]
    dispatcher = running.app.state.service.dispatcher
    assert (len(dispatcher.waiting), dispatcher._reading) == (0, set())
