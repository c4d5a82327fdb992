"""``POST /predict``: answers as Python gives them, sizes and their reasons, and one line for every mistake."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from anyres.config import UserError
from anyres.deploy.cascade import CascadePredictor
from anyres.deploy.predictor import Predictor
from anyres.flow import Size
from anyres.runs.cascade import preprocessing
from anyres.runs.opened import TrainedModel
from anyres.serve.app import make_app
from anyres.serve.model import ServedModel
from anyres.serve.options import ServeOptions
from anyres.serve.sizing import Load
from tests.pictures import draw
from tests.serve.conftest import OPTIONS, Running, encoded


def post(running: Running, query: str = "", content: bytes | None = None, kind: str = "image/jpeg") -> object:
    return running.client.post(
        f"/predict{query}", content=running.photo if content is None else content, headers={"content-type": kind}
    )


def expected(trained: TrainedModel, photo: bytes, size: str) -> dict[str, float]:
    """What Python's predictor says of the image."""
    from anyres.data.decode import decode
    from anyres.flow import Record

    parsed = Size.parse(size)
    how = preprocessing(trained, parsed)
    python = Predictor(trained.backbone, "eager", parsed, preprocessing=how, names=trained.classes)
    (row,) = python.predict(decode(Record(photo, -1, "photo")).image, top=5)
    return {guess.name: guess.probability for guess in row}


@pytest.mark.parametrize("size", ["32", "48", "64", "57x83", "96"])
def test_an_answer_is_pythons_at_every_size(running: Running, trained: TrainedModel, size: str) -> None:
    answer = post(running, f"?size={size}").json()
    assert (answer["size"], answer["reason"], answer["looks"], answer["in_time"]) == (size, "asked", [size], None)
    found = {guess["name"]: guess["probability"] for guess in answer["predictions"]}
    assert found == pytest.approx(expected(trained, running.photo, size), abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(trained.classes[guess["label"]] == guess["name"] for guess in answer["predictions"])
    spent = answer["milliseconds"]
    assert 0 < spent["compute"] <= spent["total"]
    form = running.client.post(f"/predict?size={size}&top=2", files={"image": ("a.jpg", running.photo)}).json()
    assert form["predictions"] == answer["predictions"][:2]


def test_without_a_size_the_best_of_the_curve(running: Running) -> None:
    answer = post(running).json()
    assert (answer["size"], answer["reason"]) == ("64", "usual")
    about = running.client.get("/about").json()
    assert [row["size"] for row in about["sizes"]] == ["32", "48", "64"]
    assert [row["quality"] for row in about["sizes"]] == [0.6, 0.7, 0.75]
    assert (about["usual"], about["metric"], about["cascade"]) == ("64", "top-1", ["32", "64"])


def test_a_deadline_chooses_a_smaller_size(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    service = running.app.state.service
    roomy = post(running, "?deadline_ms=60000").json()
    assert (roomy["size"], roomy["reason"], roomy["in_time"]) == ("64", "usual", True)
    slow = {Size(32, 32): 1.0, Size(48, 48): 200.0, Size(64, 64): 3000.0}
    monkeypatch.setattr(service.dispatcher.costs, "batch_ms", lambda size, images: slow[size])
    monkeypatch.setattr(service.dispatcher, "load", Load())
    tight = post(running, "?deadline_ms=2000").json()
    assert (tight["size"], tight["reason"]) == ("48", "deadline")


def test_the_cascade_answers_as_pythons(running: Running, trained: TrainedModel, served: ServedModel) -> None:
    from anyres.data.decode import decode
    from anyres.deploy.cascade import Cascade
    from anyres.flow import Record

    assert trained.folder is not None
    kept = Cascade.read(trained.folder / "cascade.json")
    stages = [
        Predictor(trained.backbone, "eager", size, preprocessing=preprocessing(trained, size), names=trained.classes)
        for size in kept.parsed
    ]
    counts = {1: 0, 2: 0}
    for seed in range(6):
        content = encoded(draw(seed % 3, seed, 60 + 9 * seed))
        answer = post(running, "?size=cascade", content).json()
        counts[len(answer["looks"])] += 1
        assert answer["reason"] == "cascade"
        assert answer["looks"] == ["32", "64"][: len(answer["looks"])]
        runner = CascadePredictor(stages, kept)
        (row,) = runner.predict([decode(Record(content, -1, "photo")).image], top=5)
        assert [guess["name"] for guess in answer["predictions"]] == [guess.name for guess in row]
        shares = [guess["probability"] for guess in answer["predictions"]]
        assert shares == pytest.approx([guess.probability for guess in row], abs=1e-5)
    assert min(counts.values()) > 0, "both ways are taken"


def test_many_at_once_are_each_answered_in_batches(running: Running, trained: TrainedModel) -> None:
    import concurrent.futures

    photos = [encoded(draw(i % 3, i, 50 + i)) for i in range(12)]
    alone = [post(running, "?size=48", content).json()["predictions"] for content in photos]
    metric = 'anyres_batch_images_count{size="48"}'
    before = _number(running, metric)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda content: post(running, "?size=48", content).json()["predictions"], photos))
    for one, other in zip(alone, together, strict=True):
        assert [guess["name"] for guess in one] == [guess["name"] for guess in other]
        assert [guess["probability"] for guess in one] == pytest.approx(
            [guess["probability"] for guess in other], abs=1e-5
        )
    assert 3 <= _number(running, metric) - before < 12, "some went together"


def _number(running: Running, name: str) -> float:
    lines = running.client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


def test_metrics_count_what_was_answered(running: Running) -> None:
    before = _number(running, 'anyres_size_chosen_total{reason="asked",size="32"}')
    post(running, "?size=32")
    post(running, "?size=33")
    assert _number(running, 'anyres_size_chosen_total{reason="asked",size="32"}') == before + 1
    assert _number(running, 'anyres_size_chosen_total{reason="asked",size="other"}') >= 1
    assert _number(running, "nv_inference_count_total") >= 2
    assert _number(running, "process_resident_memory_bytes") > 1e6
    assert _number(running, "anyres_queue_images") == 0


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG of so many pixels, without them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("query", "content", "kind", "status", "says"),
    [
        ("", b"no image at all", "image/jpeg", 422, "the image cannot be read: no JPEG"),
        ("", b"", "image/jpeg", 400, "the body is empty"),
        ("", b"{}", "application/json", 415, "send the image as multipart/form-data"),
        ("", b"abc", "multipart/form-data", 400, "the form cannot be read"),
        ("", b"abc", "multipart/form-data; boundary=x", 400, "form"),
        (
            "",
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nhttp://h/a.jpg\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
            "no file called `image`",
        ),
        ("", bytes(600_000), "image/jpeg", 413, "longer than 0.5 MB"),
        ("", png_of(1000, 1000), "image/png", 413, "1 megapixels, and 0.5 are read here"),
        ("", png_of(50_000, 50_000), "image/png", 413, "decompression bomb"),
        ("", png_of(90, 90), "image/png", 422, "the image cannot be read"),
        ("?size=7", None, "image/jpeg", 422, "8 to 512 px a side"),
        ("?size=513", None, "image/jpeg", 422, "8 to 512 px a side"),
        ("?size=99999", None, "image/jpeg", 422, "size"),
        ("?size=big", None, "image/jpeg", 422, "query.size"),
        ("?size=64.5", None, "image/jpeg", 422, "query.size"),
        ("?top=0", None, "image/jpeg", 422, "query.top"),
        ("?deadline_ms=-1", None, "image/jpeg", 422, "query.deadline_ms"),
        ("?deadline_ms=nan", None, "image/jpeg", 422, "query.deadline_ms"),
    ],
)
def test_every_mistake_is_one_line(
    running: Running, query: str, content: bytes | None, kind: str, status: int, says: str
) -> None:
    answer = post(running, query, content, kind)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert says in error
    assert "\n" not in error
    assert running.app.state.service.bodies._held == 0
    assert not running.app.state.service.dispatcher._reading


def test_compressed_bodies_and_unknown_paths_are_refused(running: Running) -> None:
    answer = running.client.post("/predict", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.headers["connection"]) == (415, "close")
    assert running.client.get("/nothing").json() == {"error": "Not Found"}
    assert running.client.get("/predict").status_code == 405


def test_every_answer_has_the_headers_that_keep_a_browser_safe(running: Running) -> None:
    for path in ("/", "/page.js", "/page.css", "/about", "/healthz", "/nothing", "/openapi.json"):
        headers = running.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
    assert running.client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert running.client.get("/docs").status_code == 404, "its scripts would come from elsewhere"


def test_a_token_is_wanted_of_everything_but_the_page_and_the_probes(served: ServedModel, photo: bytes) -> None:
    token = "a-long-enough-token"
    guarded = object.__new__(ServedModel)
    guarded.__dict__ = {**served.__dict__, "options": replace(OPTIONS, token=token)}
    with TestClient(make_app(guarded), base_url="http://localhost") as client:
        for path in ("/", "/page.js", "/healthz", "/readyz", "/v2/health/ready"):
            assert client.get(path).status_code == 200, path
        for path in ("/about", "/metrics", f"/v2/models/{served.name}"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"authorization": f"Bearer {token}"}).status_code == 200
        jpeg = {"content-type": "image/jpeg"}
        for given in ("", "Bearer", f"Bearer {token}x", f"Basic {token}", "Bearer \xe9"):
            answer = client.post("/predict", content=photo, headers={**jpeg, "authorization": given.encode("latin-1")})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        right = {**jpeg, "authorization": f"bearer {token}"}
        assert client.post("/predict", content=photo, headers=right).status_code == 200


def test_what_would_be_unsafe_is_refused() -> None:
    for options, says in (
        (ServeOptions(host="0.0.0.0"), "lets other machines in"),
        (ServeOptions(token="short"), "16 or more characters"),
        (ServeOptions(port=70_000), "give 0"),
        (replace(OPTIONS, pace=replace(OPTIONS.pace, batch=3)), "power of two"),
        (replace(OPTIONS, sizes=(Size(600, 600),)), "8 to 512 px"),
    ):
        with pytest.raises(UserError, match=says):
            options.check()
    for options in (
        ServeOptions(host="0.0.0.0", token="a-long-enough-token"),
        ServeOptions(host="0.0.0.0", open=True),
        ServeOptions(host="localhost"),
        ServeOptions(host="::1"),
    ):
        options.check()
