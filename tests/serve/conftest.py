"""A small model with a curve and a cascade, served in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi import FastAPI
from safetensors.torch import save_file
from starlette.testclient import TestClient

from anyres.deploy.cascade import Cascade
from anyres.evaluation.curve_file import write_csv
from anyres.evaluation.measured import TOP1
from anyres.flow import Cost, Estimate, Size, SizeResult
from anyres.runs.opened import ModelSpec, TrainedModel, open_model
from anyres.serve.app import make_app
from anyres.serve.model import ServedModel
from anyres.serve.options import Limits, Pace, ServeOptions
from tests.models.zoo import build, stirred
from tests.pictures import draw

CURVE = {32: 0.6, 48: 0.7, 64: 0.75}
OPTIONS = ServeOptions(
    limits=Limits(megabytes=0.5, megapixels=0.5, side=512, read_s=5.0), pace=Pace(batch=4, queue_ms=30_000.0)
)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    made = io.BytesIO()
    image.save(made, kind)
    return made.getvalue()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """restv2_nano with random weights and five classes; in its folder a curve and a cascade."""
    folder = tmp_path_factory.mktemp("served")
    save_file(stirred(build("restv2")).state_dict(), folder / "weights.safetensors")
    (folder / "classes.json").write_text('["disc", "square", "stripes", "<b>odd</b>", "other"]')
    opened = open_model(ModelSpec("restv2_nano", str(folder / "weights.safetensors"), folder / "classes.json"))
    points = [
        SizeResult(
            "restv2_nano", Size(side, side), {TOP1.key: Estimate(top1)}, (TOP1,), 100, Cost(side / 10, 100.0, side)
        )
        for side, top1 in CURVE.items()
    ]
    write_csv(points, folder / "curve.csv")
    Cascade(
        sizes=("32", "64"),
        temperatures=(1.5, 2.0),
        thresholds=(0.337,),
        max_loss=1.0,
        images=100,
        expected_loss=0.1,
        top1=75.0,
        lost=0.0,
        shares=(0.5, 0.5),
        speedup=1.5,
    ).write(folder / "cascade.json")
    return replace(opened, folder=folder)


@pytest.fixture(scope="session")
def served(trained: TrainedModel) -> ServedModel:
    return ServedModel(trained, OPTIONS)


class Running(NamedTuple):
    app: FastAPI
    client: TestClient
    photo: bytes


@pytest.fixture(scope="session")
def photo() -> bytes:
    return encoded(draw(0, 1, 90))


@pytest.fixture(scope="module")
def running(served: ServedModel, photo: bytes) -> Iterator[Running]:
    app = make_app(served)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield Running(app, client, photo)


@pytest.fixture
def folder(trained: TrainedModel) -> Path:
    assert trained.folder is not None
    return trained.folder
