"""``POST /map``: the map that Python gives, and what happens where there is none."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import anyres
from anyres.runs.opened import TrainedModel
from anyres.serve.app import make_app
from anyres.serve.model import ServedModel
from tests.models.zoo import build, stirred
from tests.serve.conftest import OPTIONS, Running


def post(running: Running, query: str = "", content: bytes | None = None) -> dict[str, object]:
    body = running.photo if content is None else content
    return running.client.post(f"/map{query}", content=body, headers={"content-type": "image/jpeg"})  # type: ignore[return-value]


@pytest.mark.parametrize("size", ["48", "57x83"])
def test_a_map_is_pythons(running: Running, trained: TrainedModel, size: str, tmp_path: object) -> None:
    from anyres.data.decode import decode
    from anyres.flow import Record

    said = post(running, f"?size={size}").json()
    (seen,) = anyres.look(trained, decode(Record(running.photo, -1, "photo")).image, size=size)
    assert (said["method"], said["of"], said["size"], said["stride"]) == (seen.method, seen.of, size, seen.stride)
    assert torch.tensor(said["values"]) == pytest.approx(seen.maps.mean(0), abs=1e-6)
    head, _, encoded = said["picture"].partition(",")
    assert head == "data:image/jpeg;base64"
    drawn = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert drawn.width * seen.picture.shape[1] == drawn.height * seen.picture.shape[2]
    assert post(running).json()["size"] == "64", "the best size of the curve"


def test_maps_wait_for_those_who_want_answers(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    service = running.app.state.service
    with monkeypatch.context() as patched:
        patched.setattr(service.dispatcher, "backlog_ms", lambda: 1.0)
        busy = post(running)
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    with service.looking._turn:
        assert post(running).status_code == 503, "one at a time"
    assert post(running).status_code == 200
    assert running.client.get("/about").json()["map"] == "attention"


def test_what_is_no_image_or_no_size_is_one_line(running: Running) -> None:
    assert "cannot be read" in post(running, content=b"no image").json()["error"]
    assert post(running, "?size=4").status_code == 422
    assert post(running, "?size=cascade").status_code == 422
    assert running.app.state.service.bodies.in_flight == 0
    assert post(running).status_code == 200


def test_a_model_without_a_map(trained: TrainedModel, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """ResMLP has no attention, and captum may not be installed."""
    model = ServedModel(replace(trained, model=stirred(build("resmlp")), folder=None), replace(OPTIONS, sizes=()))
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with TestClient(make_app(model), base_url="http://localhost") as client:
        assert client.get("/about").json()["map"] is None
        said = client.post("/map", content=photo, headers={"content-type": "image/jpeg"})
    assert (said.status_code, "anyres[maps]" in said.json()["error"]) == (422, True)
