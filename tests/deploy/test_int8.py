"""int8 in exported files: what is quantised, what it costs at each size, and where it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from anyres.deploy.export.certificate import SAME, Count, Wrong, check_int8
from anyres.deploy.export.certificate import Certificate as Told
from anyres.deploy.export.files import graph_hash, read_said
from anyres.deploy.export.graph import free_graph
from anyres.deploy.export.int8 import quantized
from anyres.deploy.export.write import in_int8
from anyres.flow import Size
from anyres.models import create_model
from anyres.runs.export import subject_of
from anyres.runs.opened import open_run
from tests.command import refused
from tests.deploy.conftest import Files
from tests.models.zoo import stirred

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.usefixtures("unchecked_types")


def floats(graph: object) -> set[str]:
    """Products of a graph whose factors are not in int8."""
    made = {name: node for node in graph.graph.node for name in node.output}  # type: ignore[attr-defined]
    products = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]  # type: ignore[attr-defined]
    return {
        node.name
        for node in products
        if not all(each in made and made[each].op_type == "DequantizeLinear" for each in node.input[:2])
    }


def weights(graph: object) -> int:
    """Bytes of float32 that a graph holds."""
    every = graph.graph.initializer  # type: ignore[attr-defined]
    return sum(len(each.raw_data) for each in every if each.data_type == onnx.TensorProto.FLOAT)


def test_it_costs_what_the_certificate_says(files: Files, tmp_path: Path) -> None:
    subject = subject_of(open_run(files.run), int8=True)
    assert subject.int8 is not None
    assert [str(size) for size in subject.int8.sizes] == ["32", "48"], "the sizes of the curve"
    place, graph = tmp_path / "small.onnx", onnx.load(files.onnx)
    before = Told(**{**read_said(files.onnx)["certificate"], "skipped": {}})
    small, found = in_int8(subject, graph, place, None, before)
    assert found.precision == "int8"
    assert {(each.engine, each.size) for each in found.counts} == {
        (engine, size) for engine in ("onnxruntime", "openvino") for size in ("32", "48")
    }
    assert all(SAME * each.images <= each.same <= each.images for each in found.counts)
    assert all(0 < each.mean < each.most < 0.2 for each in found.counts)
    assert found.hashes["graph"] == graph_hash(small) != before.hashes["graph"]
    assert "int8 in onnxruntime and openvino: at 32 px first class equal on " in found.line
    assert json.loads(json.dumps(found.facts()))["counts"][0]["model_right"] is not None
    assert weights(small) < 0.5 * weights(graph)
    assert all(name.startswith("dial/") for name in floats(small)), "all but the dial is in int8"
    assert any(name.startswith("dial/") for name in floats(small)), "the dial stays exact"


def test_mixing_matrices_of_a_free_size_stay(files: Files) -> None:
    """A resampled matrix follows from the size: no image tells its range."""
    model = stirred(create_model("resmlp_nano", 3, depth=1, any_size=True))
    referee = files.subject.referee
    graph = free_graph(model, referee.how, "softmax")
    images = [picture[:, :40, :40] for picture in files.subject.pictures.images[:4]]
    small = quantized(graph, images, [Size(24, 24), Size(40, 32)])
    assert any(not name.startswith("dial/") for name in floats(small))
    assert len(floats(small)) < len([node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")])


def test_too_much_of_a_change_is_refused() -> None:
    told = Count("onnxruntime", "96", 100, 90, 80, 82, 0.01, 0.2)
    check_int8("model.onnx", [told])
    with pytest.raises(
        Wrong, match=r"keeps the first class of 89 of 100 images at 96 px in onnxruntime, and 90% is the"
    ):
        check_int8("model.onnx", [told, replace(told, same=89)])


def test_where_it_is_not_made(files: Files, tmp_path: Path) -> None:
    given = ("export", files.run, "--int8", "--to")
    for kind, name in (("torch", "a.pt2"), ("web", "page"), ("openvino", "a.xml")):
        assert f"not for {kind}: leave it out" in refused(*given, kind, "--out", tmp_path / name)
    model = stirred(create_model("resmlp_nano", 3))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    said = refused(
        "export", "resmlp_nano", "--weights", tmp_path / "weights.safetensors", "--int8", "--out", tmp_path / "a.onnx"
    )
    assert "is no run: leave it out" in said
    assert not (tmp_path / "a.onnx").exists()
