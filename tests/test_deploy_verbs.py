"""The verbs of deployment on a real run: engines and cascades that answer as the run does, and speeds side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from anyres.flow import Size
from anyres.runs.bench import BenchmarkConfig, jobs_for
from tests.command import anyres, refused
from tests.conftest import TinyRun
from tests.pictures import make_folder


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def width(picture: Path) -> int:
    with Image.open(picture) as opened:
        return opened.width


def test_a_cascade_is_chosen_kept_drawn_and_used(run: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    photos = sorted(tiny_run.data.rglob("*.jpg"))[:5]
    assert "has no cascade: `anyres cascade" in refused("predict", run, photos[0], "--cascade")
    assert "9 held-out images are too few" in refused("cascade", run, "--sizes", "32,48")
    more = make_folder(tmp_path / "more", per_class=40)
    words = ("cascade", run, "--sizes", "32,48", "--max-loss", 5, "--backend", "eager", "--data", more)
    answer = anyres(*words)
    assert answer.code == 0, answer.err
    assert "images that did not choose it: top-1" in answer.out
    kept = json.loads((run / "cascade.json").read_text())
    assert kept["sizes"][-1] == "48"
    assert kept["expected_loss"] <= 5
    assert width(run / "cascade.png") > 1000
    through = anyres("predict", run, *photos, "--cascade", "--top", 1)
    assert (through.code, through.out.count(".jpg")) == (0, 5)
    assert "leave out --size" in refused("predict", run, photos[0], "--cascade", "--size", "32")


def test_an_engine_names_the_classes_that_the_run_names(run: Path, tiny_run: TinyRun) -> None:
    photos = sorted(tiny_run.data.rglob("*.jpg"))[::9]
    plain, other = (
        anyres("predict", run, *photos, "--size", "48x40", "--top", 1, *words)
        for words in ((), ("--backend", "eager:fp32"))
    )
    assert plain.code == other.code == 0, other.err
    named = [[line.split()[-3] for line in answer.out.splitlines()[1:]] for answer in (plain, other)]
    assert named[0] == named[1]
    assert "backend 'tensorrt' is none of auto, eager" in refused("predict", run, photos[0], "--backend", "tensorrt")


def test_int8_reads_its_ranges_from_training_images(run: Path, tiny_run: TinyRun) -> None:
    photo = sorted(tiny_run.data.rglob("*.jpg"))[0]
    words = ("predict", run, photo, "--size", "48", "--top", 1, "--backend")
    full, small = (anyres(*words, choice) for choice in ("eager:fp32", "onnxruntime:int8"))
    assert full.code == small.code == 0, small.err
    shares = [float(answer.out.split()[-2]) for answer in (full, small)]
    assert 0 < abs(shares[0] - shares[1]) < 10
    named = ("predict", "restv2_nano", photo, "--weights", run / "model.safetensors", "--backend", "openvino:int8")
    assert "reads its ranges from a run's training images" in refused(*named)


def test_speeds_side_by_side(run: Path, tmp_path: Path) -> None:
    into, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    answer = anyres(
        *("bench", "model", run, "--sizes", "32", "--batches", "2", "--backend", "eager:fp32"),
        *("--against", "onnxruntime"),
        *("--rounds", 2, "--seconds", 0.05, "--threads", 1, "--json", into, "--plot", picture),
    )
    assert answer.code == 0, answer.err
    facts = json.loads(into.read_text())
    assert {(row["name"], row["backend"]) for row in facts["rows"]} >= {
        ("anyres", "eager:fp32"),
        ("onnxruntime", "onnxruntime:fp32"),
    }
    for row in facts["rows"]:
        assert row["images/s"] > 0
        assert row["p50 ms"] <= row["p99 ms"]
        assert 0 < row["share of the matrix rate"] < 2
        assert len(row["rounds"]) == 2
    ratio = next(ratio for ratio in facts["ratios"] if ratio["against"] == "onnxruntime in fp32")
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert "of the matrix rate" in answer.out
    assert width(picture) > 1000


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_is_raced_as_it_is_and_run_as_ours(engine: str) -> None:
    config = BenchmarkConfig(["restv2_nano"], None, [], [], [f"{engine}:fp32"], [engine], 1, 0.1, 2)
    jobs = jobs_for(config, "restv2_nano", Size(32, 32), 8)
    assert {job.name: job.tuned for job in jobs} == {"anyres": True, engine: False, f"{engine}, tuned": True}


MISTAKES = {
    "bench model restv2_nano --against tensorrt": "--against 'tensorrt' is none of plain, timm",
    "bench model restv2_nano --batches 0": "--batches '0': give numbers of images",
    "bench model restv2_nano --against timm --sizes 32": "timm has no restv2_nano: use --against plain",
    "bench model restv2_nanno --sizes 32": "restv2_nano",
    "cascade nowhere": "nowhere is not a run folder",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_in_one_line(words: str) -> None:
    assert MISTAKES[words] in refused(*words.split())
