"""Bodies from nowhere: broken ones, bombs, and requests made from the OpenAPI; never a 500, never a crash."""

from __future__ import annotations

import io
import random
import resource
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
from PIL import Image

from tests.pictures import draw
from tests.serve.conftest import Running, encoded
from tests.serve.test_predict import png_of

BODIES = 120
"""With 500 it passed as well; each costs 20 ms here."""
TYPES = ("image/jpeg", "image/png", "application/octet-stream", "multipart/form-data; boundary=x", "image/\xe9")


def broken(seed: int) -> tuple[bytes, str, str]:
    """A body, its type and a query, drawn from ``seed``: sound images cut, flipped, doubled, and noise."""
    rng = random.Random(seed)
    kind = rng.choice(("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"))
    body = bytearray(encoded(draw(rng.randrange(3), rng.randrange(9), rng.choice((24, 40))), kind))
    for _ in range(rng.randrange(4)):
        way, place = rng.randrange(5), rng.randrange(len(body) + 1)
        if way == 0:
            body = body[:place]
        elif way == 1:
            body[place : place + rng.randrange(1, 60)] = rng.randbytes(rng.randrange(1, 60))
        elif way == 2 and body:
            body[min(place, len(body) - 1)] ^= 1 << rng.randrange(8)
        elif way == 3:
            body = body + body
        else:
            body = bytearray(rng.randbytes(rng.randrange(200)))
    content, mime = bytes(body), rng.choice(TYPES)
    if mime.startswith("multipart") and rng.random() < 0.7:
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        content = head + content + b"\r\n--x--\r\n" * (rng.random() < 0.8)
    query = rng.choice(("", "?size=32", "?size=48&top=2", "?size=auto&deadline_ms=50000", "?size=%00", "?top=1e9"))
    return content, mime, query


def test_broken_bodies_are_answered_in_one_line(running: Running) -> None:
    statuses: Counter[int] = Counter()
    for seed in range(BODIES):
        content, kind, query = broken(seed)
        headers = {"content-type": kind.encode("latin-1")}
        answer = running.client.post(f"/predict{query}", content=content, headers=headers)
        statuses[answer.status_code] += 1
        said = answer.json()
        assert answer.status_code in (200, 400, 413, 415, 422), (seed, answer.text)
        assert "predictions" in said or "\n" not in said["error"], seed
    assert statuses[200] > BODIES / 10
    assert statuses[422] > BODIES / 10
    service = running.app.state.service
    assert (service.bodies.in_flight, service.bodies._held, len(service.dispatcher.waiting)) == (0, 0, 0)
    assert not service.dispatcher._reading


def test_bombs_are_refused_before_they_are_decoded(running: Running) -> None:
    flat = io.BytesIO()
    Image.new("L", (9000, 9000)).save(flat, "PNG")  # 81 megapixels in 80 kB
    gif = io.BytesIO()
    Image.new("P", (6000, 6000)).save(gif, "GIF")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in (flat.getvalue(), png_of(60_000, 60_000), gif.getvalue()):
        answer = running.client.post("/predict", content=content, headers={"content-type": "image/png"})
        assert answer.status_code == 413, answer.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB of peak memory"


@pytest.fixture(scope="module")
def operations(running: Running) -> Iterator[list[object]]:
    schemathesis = pytest.importorskip("schemathesis")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_dict(running.app.openapi())
        schema.app = running.app
        yield [found.ok() for found in schema.get_all_operations()]


def test_requests_made_from_the_openapi(running: Running, operations: list[object]) -> None:
    """Schemathesis writes the requests, right and wrong ones; answers must be those that the schema tells of."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    assert {operation.path for operation in operations} >= {"/predict", "/about", "/v2/models/{model}/infer"}
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    quick = settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    asked = Counter()
    for operation in operations:
        if "versions" in operation.path:  # the same functions
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            def send(case: object) -> None:
                asked[case.operation.label] += 1
                case.call_and_validate(base_url="http://localhost", session=running.client, checks=checks)

            with suppress(Unsatisfiable):  # of an operation that nothing can be wrong with
                quick(given(case=operation.as_strategy(generation_mode=mode))(send))()
    assert asked["POST /predict"] >= 5
