"""Drift where a run is used: `anyres predict`, `anyres serve`, and what `anyres export` writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from anyres.deploy.cascade import Cascade
from anyres.evaluation.drift import HeldOut
from anyres.evaluation.scores_file import SCORES
from anyres.flow import Size
from anyres.recipe import load_recipe
from anyres.runs.drift import DriftCounter, confidence_in, held_out_of
from anyres.runs.export import subject_of
from anyres.runs.opened import ModelSpec, open_model, open_run
from anyres.runs.train import train_run
from tests.command import anyres
from tests.pictures import draw
from tests.runs import record_curve


class Kept(NamedTuple):
    """A run that scored 120 pictures, others of the same kind, and noise, 210 each."""

    run: Path
    alike: Path
    noise: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    root = tmp_path_factory.mktemp("drift")
    for split, each, first in (("train", 16, 0), ("val", 40, 3000), ("alike", 70, 6000)):
        for kind, name in enumerate(("disc", "square", "stripes")):
            folder = root / ("alike" if split == "alike" else f"data/{split}/{name}")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(each):
                draw(kind, first + 1000 * kind + i, 36).save(folder / f"{name}{i}.png")
    rng = np.random.default_rng(0)
    (root / "noise").mkdir()
    for i in range(210):
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(root / "noise" / f"{i}.png")
    values = (
        *(f"data.source={root / 'data'}", "model.name=resmlp_nano", "model.depth=2", "views.sizes=[32,24]"),
        *("data.batch_size=8", "data.workers=0", "data.cache_side=40", "train.epochs=6", "optim.lr=2e-3"),
        *("train.precision=fp32", "evaluate.sizes=[24,32]"),
    )
    train_run(load_recipe("nano", values), root / "run", report=False)
    record_curve(root / "run")
    return Kept(root / "run", root / "alike", root / "noise")


def test_the_run_keeps_what_its_held_out_images_looked_like(kept: Kept) -> None:
    trained = open_run(kept.run)
    found = held_out_of(trained)
    assert found is not None
    assert (found.images, sorted(found.confidences), found.exits) == (120, ["24", "32"], {})
    assert all(sum(one.counts) == 120 for one in found.confidences.values())
    assert max(one.counts[0] for one in found.confidences.values()) <= 13, "deciles"
    said = subject_of(trained).said["held_out"]
    assert HeldOut.read(said) == found, "an exported file carries it"
    assert held_out_of(open_model(ModelSpec("resmlp_nano", "none"))) is None
    assert confidence_in({"boxes": []}) != confidence_in({"classes": [{"name": "a", "probability": 0.5}]}) == 0.5


def test_predict_tells_drift_of_many_images(kept: Kept, tmp_path: Path) -> None:
    alike = anyres("predict", kept.run, kept.alike, "--csv", tmp_path / "a.csv")
    noise = anyres("predict", kept.run, kept.noise, "--csv", tmp_path / "b.csv", "--size", "24")
    assert (alike.code, noise.code) == (0, 0), alike.err + noise.err
    told = [re.search(r"drift of 210 images from the 120 held-out ones: confidence ([\d.]+) \((.+?);", answer.err)
            for answer in (alike, noise)]  # fmt: skip
    assert all(told), (alike.err, noise.err)
    assert float(told[0][1]) < 0.25 < float(told[1][1])  # type: ignore[index]
    assert told[1][2] == "a shift"  # type: ignore[index]
    few = anyres("predict", kept.run, kept.noise / "1.png", kept.noise / "2.png")
    assert "drift of" not in few.err + few.out


def test_predict_out_tells_drift_of_all_images_that_can_be_read(kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = (kept.noise, tmp_path / "broken.png", "--size", "24,32", "--out", tmp_path / "answers.csv")
    done = anyres("predict", kept.run, *words)
    assert done.code == 0, done.err
    assert "211 images (1 unreadable)" in done.out
    told = re.search(r"drift of 210 images from the 120 held-out ones: confidence ([\d.]+) \((.+?);", done.err)
    assert told, done.err
    assert told[2] == "a shift"


def test_a_cascades_exits_are_compared(kept: Kept, tmp_path: Path) -> None:
    path = kept.run / "cascade.json"
    Cascade(("24", "32"), (1.0, 1.0), (0.5,), 1.0, 60, 0.0, 90.0, 0.0, (0.5, 0.5), 1.5).write(path)
    try:
        drift = DriftCounter(open_run(kept.run), cascade=True)
        for _ in range(250):
            drift.add(Size(24, 24), {"classes": [{"name": "disc", "probability": 0.9}]})
    finally:
        path.unlink()
    assert "exit" in drift.line
    assert "a shift" in drift.line


def test_the_server_tells_drift(kept: Kept) -> None:
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from anyres.serve.app import make_app
    from anyres.serve.model import ServedModel
    from anyres.serve.options import ServeOptions

    model = ServedModel(open_run(kept.run), ServeOptions())
    contents = [path.read_bytes() for path in sorted(kept.noise.iterdir())]
    with TestClient(make_app(model), base_url="http://127.0.0.1") as client:
        before = client.get("/about").json()
        assert (before["held_out"], before["drift"]) == (120, [])
        assert 'anyres_drift{of="confidence"} NaN' in client.get("/metrics").text
        for content in contents:
            answer = client.post("/predict", content=content, headers={"Content-Type": "image/png"})
            assert answer.status_code == 200, answer.text
        about, metrics = client.get("/about").json(), client.get("/metrics").text
    told = {drift["of"]: drift for drift in about["drift"]}
    assert told["confidence"]["verdict"] == "a shift"
    assert told["confidence"]["images"] == 210
    psi = re.search(r'^anyres_drift\{of="confidence"\} ([\d.]+)$', metrics, re.M)
    assert psi is not None
    assert float(psi[1]) == pytest.approx(told["confidence"]["psi"], abs=1e-4)


def test_without_a_curve_nothing_is_told(kept: Kept) -> None:
    path = kept.run / SCORES
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-8])
        assert held_out_of(open_run(kept.run)) is None
        path.unlink()
        assert held_out_of(open_run(kept.run)) is None
        drift = DriftCounter(open_run(kept.run))
        for _ in range(250):
            drift.add("24", {"classes": [{"name": "disc", "probability": 0.9}]})
        assert drift.line == ""
    finally:
        path.write_bytes(content)
