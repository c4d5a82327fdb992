"""Exported files: what stands in them, what they answer, and that a wrong one is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import anyres
from anyres.data.decode import decode
from anyres.data.views import eval_view
from anyres.deploy.export.certificate import Wrong
from anyres.deploy.export.dial import Dial, Preparation
from anyres.deploy.export.files import EXTERNAL_FROM, drafts, graph_hash, read_said, save_graph
from anyres.deploy.export.runtimes import open_onnxruntime, open_openvino
from anyres.deploy.export.write import certify_onnx, convert_to_openvino, write, write_triton_config
from anyres.flow import Record, Size
from anyres.models import create_model
from anyres.models.resmlp import ResMLP
from anyres.runs.export import tried_sizes
from anyres.storage import draft_beside
from tests.command import refused
from tests.deploy.conftest import Files
from tests.models.zoo import stirred

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize(
    "how",
    [
        Preparation((0.5,) * 3, (0.25,) * 3, 0.9),
        Preparation((0.5,) * 3, (0.25,) * 3, 1.0, 64),
        Preparation((0.5,), (0.25,), 0.875, True),
    ],
)
def test_the_dial_is_the_evaluation_view(how: Preparation) -> None:
    dial, drawn = Dial(how), torch.Generator().manual_seed(0)
    for height, width in ((40, 57), (131, 90), (9, 200)):
        image = torch.randint(0, 256, (len(how.mean), height, width), generator=drawn, dtype=torch.uint8)
        for size in (Size(64, 64), Size(37, 53)):
            view = eval_view(image, size, how.crop, how.warps(size), how.interpolation).float()
            made = (dial(image.permute(1, 2, 0)[None].contiguous(), torch.tensor(size))[0] - dial.shift) / dial.scale
            apart = (made - view).abs()
            assert apart.max() < 1.01
            assert (apart > 0.01).float().mean() < 1e-3


def test_the_file_says_what_it_is(files: Files) -> None:
    said = read_said(files.onnx)
    assert said["classes"] == ["disc", "square", "stripes"]
    assert said["sizes"]["usual"] == [48, 48]
    assert said["provenance"]["model"]["name"] == "deit_tiny_patch16_224"
    assert said["preprocessing"]["mean"] == list(anyres.load(files.run).recipe.data.mean)
    assert [row["height"] for row in said["curve"]] == [32, 48]
    certificate = said["certificate"]
    assert {each["size"] for each in certificate["checks"]} == {str(size) for size in tried_sizes(Size(48, 48))}
    assert {each["engine"] for each in certificate["checks"]} == {"onnxruntime", "openvino"}
    assert all(each["same"] == each["images"] > 0 for each in certificate["counts"])
    assert all(each["right"] == each["model_right"] is not None for each in certificate["counts"])


def test_the_certificate_lies_beside(files: Files) -> None:
    beside = json.loads((files.onnx.parent / "model.onnx.certificate.json").read_text())
    assert beside["certificates"]["model.onnx"] == read_said(files.onnx)["certificate"]
    assert sorted(each.name for each in files.onnx.parent.iterdir()) == sorted(
        ["model.40x32.onnx", "model.onnx", "model.onnx.certificate.json"]
    )
    assert set(beside["files"]) == {"model.onnx", "model.40x32.onnx"}
    assert "first class equal on" in files.said


@pytest.mark.parametrize("opened", [open_onnxruntime, open_openvino])
def test_it_answers_as_predict_does(files: Files, opened: object) -> None:
    ask, fixed = opened(files.onnx), opened(files.onnx.with_name("model.40x32.onnx"))  # type: ignore[operator]
    paths = sorted(files.data.rglob("*.jpg"))[::4]
    for path in paths:
        image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())[None]
        for size, engine in (("61x43", ask), ("40x32", ask), ("40x32", fixed)):
            said = anyres.predict(files.run, [path], size=size, top=3)[0].values["classes"]
            truth = {each["name"]: each["probability"] for each in said}
            found = engine(image, Size.parse(size))[0].tolist()
            assert found == pytest.approx([truth[name] for name in ("disc", "square", "stripes")], abs=1e-4)


def _changed(files: Files, place: Path, name: str, change: float | None) -> str:
    """The file with one tensor changed, at ``place``; the SHA-256 of its graph. ``change`` None: all zeros."""
    graph = onnx.load(files.onnx)
    tensor = next(each for each in graph.graph.initializer if each.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    if change is None:
        values[:] = 0
    else:
        values.reshape(-1)[0] += change
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    save_graph(graph, place, {})
    return graph_hash(graph)


def test_a_file_made_wrong_is_refused(files: Files, tmp_path: Path) -> None:
    place = tmp_path / "wrong.onnx"
    right = graph_hash(onnx.load(files.onnx))
    subject = replace(files.subject, sizes=files.subject.sizes[:2])
    certify_onnx(subject, files.onnx, None, right)
    lost = _changed(files, place, "dial/shift", None)  # the mean
    with pytest.raises(Wrong, match="answers otherwise than its model"):
        certify_onnx(subject, place, None, lost)
    other = _changed(files, place, "model.head.weight", 0.5)
    with pytest.raises(Wrong, match="answers otherwise than its model"):
        certify_onnx(subject, place, None, other)
    _changed(files, place, "model.head.weight", 1e-6)  # answers as before
    with pytest.raises(Wrong, match="SHA-256 differs"):
        certify_onnx(subject, place, None, right)
    warped = replace(subject.referee, how=replace(subject.referee.how, warp=True))  # the resizing is another
    with pytest.raises(Wrong, match="answers otherwise than its model"):
        certify_onnx(replace(subject, referee=warped), files.onnx, None, right)


class Forgetful(ResMLP):
    """Answers otherwise when it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        return logits * 2 if torch.compiler.is_exporting() else logits


def test_of_a_wrong_file_nothing_is_left(files: Files, tmp_path: Path) -> None:
    model = stirred(create_model("resmlp_nano", 3, depth=1, any_size=True))
    model.__class__ = Forgetful
    subject = replace(files.subject, referee=replace(files.subject.referee, model=model), sizes=(Size(24, 24),))
    with pytest.raises(Wrong, match=r"model.onnx answers otherwise .*onnxruntime"):
        write(subject, tmp_path / "new" / "model.onnx", "onnx")
    assert not list((tmp_path / "new").iterdir())


def test_other_formats(files: Files, tmp_path: Path) -> None:
    subject = replace(files.subject, sizes=(Size(48, 48), Size(29, 61)))
    found = convert_to_openvino(subject, onnx.load(files.onnx), tmp_path / "model.xml", None)
    assert {check.engine for check in found.checks} == {"openvino"}
    assert {each.name for each in tmp_path.iterdir()} == {"model.bin", "model.xml"}
    assert '"same": ' in (tmp_path / "model.xml").read_text().replace("&quot;", '"')
    weights = write(files.subject, tmp_path / "mine.safetensors", "safetensors").files
    assert {each.name for each in weights} == {
        "mine.json",
        "mine.safetensors",
        "mine.safetensors.certificate.json",
    }
    assert json.loads((tmp_path / "mine.json").read_text())["about"]["classes"] == ["disc", "square", "stripes"]


def test_a_model_of_a_triton_repository(files: Files, tmp_path: Path) -> None:
    place = tmp_path / "mine" / "1" / "model.onnx"
    place.parent.mkdir(parents=True)
    shutil.copy(files.onnx, place)
    write_triton_config(files.subject, place)
    assert (tmp_path / "mine" / "labels.txt").read_text().splitlines() == ["disc", "square", "stripes"]
    said = (tmp_path / "mine" / "config.pbtxt").read_text()
    assert 'name: "mine"' in said
    assert 'name: "size" data_type: TYPE_INT64 dims: [ 2 ]' in said
    assert 'name: "probabilities" data_type: TYPE_FP32 dims: [ -1, 3 ]' in said


def test_weights_of_2_gb_lie_beside(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EXTERNAL_FROM < 2**31
    monkeypatch.setattr("anyres.deploy.export.files.EXTERNAL_FROM", 10_000)
    graph, place = onnx.load(files.onnx), tmp_path / "large.onnx"
    before = graph_hash(graph)
    for _ in range(2):  # once more with the certificate
        save_graph(graph, place, {"classes": []})
    assert graph_hash(onnx.load(place)) == before
    assert place.stat().st_size + (tmp_path / "large.onnx.data").stat().st_size < 2 * files.onnx.stat().st_size
    image = decode(Record(min(files.data.rglob("*.jpg")), -1, "")).image.permute(1, 2, 0)[None].contiguous()
    size = Size(40, 40)
    assert torch.equal(open_onnxruntime(place)(image, size), open_onnxruntime(files.onnx)(image, size))


def test_drafts_are_files_or_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with drafts(tmp_path) as draft:
            (draft / "a").write_text("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())
    with drafts(tmp_path) as draft:
        (draft / "b").mkdir()
        (draft / "b" / "a").write_text("a")
    assert [each.name for each in tmp_path.rglob("*")] == ["b", "a"]


def test_drafts_of_killed_exports_are_removed(tmp_path: Path) -> None:
    killed = "import os, sys; from pathlib import Path; from anyres.storage import draft_beside; " + (
        "d = draft_beside(Path(sys.argv[1]) / 'export'); d.mkdir(); (d / 'a.onnx').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    lives = Path(str(draft_beside(tmp_path / "export")).replace(f"-{os.getpid()}-", f"-{os.getppid()}-"))
    other = tmp_path / ".export.answers"  # nobody's draft
    for each in (lives, other):
        each.mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    with drafts(tmp_path) as outer, drafts(tmp_path) as inner:
        assert {*tmp_path.iterdir()} == {lives, other, outer, inner}
    assert {*tmp_path.iterdir()} == {lives, other}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "onxx", "--out", "a.onnx"), "did you mean 'onnx'"),
        (("--out", "a.pt"), "ends in .onnx: name one, as a.onnx"),
        (("--to", "torch", "--out", "a.pt2", "--sizes", "32"), "--sizes makes fixed graphs of onnx"),
        (("--out", "a.onnx", "--sizes", "1"), "2 to 4096 px"),
        (("--out", "a.onnx", "--data", "nowhere"), "nowhere"),
        (("--out", "/proc/nowhere/a.onnx"), "/proc/nowhere"),
    ],
)
def test_mistakes_are_one_line(files: Files, words: tuple[str, ...], said: str) -> None:
    assert said in refused("export", files.run, *words)
