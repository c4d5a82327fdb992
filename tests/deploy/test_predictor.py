"""Every engine answers as the plain model does; auto measures once, remembers, and believes no wrong answer."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.config import UserError
from anyres.deploy import predictor as module
from anyres.deploy.engines import backend as backends
from anyres.deploy.engines import compiled_cache, inductor
from anyres.deploy.engines.backend import Backend, build, candidates, register_engine
from anyres.deploy.engines.engine import BackendUnavailable, BuildSpec, Engine, Runner
from anyres.deploy.engines.exported import exported
from anyres.deploy.engines.openvino import keep_matrices_bf16, openvino_core
from anyres.deploy.engines.openvino_no_telemetry import openvino
from anyres.deploy.fuse import fuse
from anyres.deploy.predictor import LIMITS, Predictor, Preprocessing, distance
from anyres.flow import has_bf16
from anyres.ops.kernels import triton_here
from tests.models.zoo import build as build_model
from tests.models.zoo import stirred
from tests.pictures import draw
from tests.test_docs import ROOT

CPU = torch.device("cpu")
PIXELS = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("choice", ["eager", "eager:bf16", "onnxruntime", "openvino", "openvino:bf16", "openvino:int8"])
def test_each_engine_answers_as_the_plain_model(choice: str) -> None:
    if choice.endswith("bf16") and not has_bf16(CPU):
        pytest.skip("this processor has no bf16")
    model = stirred(build_model("restv2", classes=7))
    with torch.no_grad():
        truth = model(PIXELS)
    pictures = [torch.randint(0, 256, (3, 70, 60), dtype=torch.uint8) for _ in range(4)] if "int8" in choice else []
    made = Predictor(model, choice, "64x48", batch=2, calibration=pictures)
    assert distance(made(PIXELS), truth) <= LIMITS[Backend.parse(choice).precision]


def test_int8_without_attention_is_not_smoothed() -> None:
    model = stirred(build_model("resmlp", classes=7))
    pictures = [torch.randint(0, 256, (3, 70, 60), dtype=torch.uint8) for _ in range(4)]
    made = Predictor(model, "openvino:int8", "64x48", batch=2, calibration=pictures)
    assert distance(made(PIXELS), model(PIXELS)) < 0.15  # 0.28 smoothed


@torch.no_grad()
@pytest.mark.parametrize(("batch", "threads"), [(6, 3), (6, 4), (5, 2), (1, 2)])
def test_parts_of_a_batch_answer_as_the_whole(batch: int, threads: int) -> None:
    """By 3, 2, 1 and 1 streams."""
    model, x = stirred(build_model("rest", classes=5)), torch.randn(batch, 3, 32, 32)
    whole, parts = (
        build(model, Backend("openvino", "fp32"), x, threads=threads, tuned=tuned) for tuned in (False, True)
    )
    for pixels in (x, x.flip(0)):
        torch.testing.assert_close(parts(pixels), model(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(whole(pixels), model(pixels), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_matrices_on_the_left_stay_narrow_in_openvino() -> None:
    """It would keep them float32, and multiply in float32 (2026.4)."""
    if not has_bf16(CPU):
        pytest.skip("this processor has no bf16")
    folded = fuse(stirred(build_model("resmlp", classes=7)), (64, 48))
    products: dict[bool, set[str]] = {}
    for narrow in (False, True):
        graph = openvino.convert_model(exported(folded, PIXELS))
        graph.reshape(list(PIXELS.shape))
        if narrow:
            keep_matrices_bf16(graph)
        core, settings = openvino_core(), {"INFERENCE_PRECISION_HINT": "bf16"}
        made = core.compile_model(graph, "CPU", settings).get_runtime_model().get_ops()
        facts = [op.get_rt_info() for op in made]
        products[narrow] = {f["runtimePrecision"].astype(str) for f in facts if f["layerType"].astype(str) == "MatMul"}
    assert products == {False: {"f32"}, True: {"bf16"}}


def test_signals_arrive_once_openvino_has_come_and_gone() -> None:
    """Each OpenVINO core makes itself a stack for them: two that ended in the order they began ended the process."""
    model = build_model("deit3", classes=3)
    engines = deque(build(model, Backend("openvino", "fp32"), torch.randn(1, 3, 32, 32)) for _ in range(2))
    engines.popleft()
    engines.popleft()
    gc.collect()
    arrived: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: arrived.append(number))
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    assert arrived == [signal.SIGUSR1]


def test_any_number_of_images_in_pieces() -> None:
    model = stirred(build_model("resmlp", classes=4))
    made = Predictor(model, "onnxruntime", 64, batch=4)
    x = torch.randn(7, 3, 64, 64)
    torch.testing.assert_close(made(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert [shape.batch for shape in made.cache.made] == [4]  # 4 and 3, which is filled up
    assert made(x[:2]).shape == (2, 4)
    assert [shape.batch for shape in made.cache.made] == [4, 2]


def test_batches_that_come_again_run_at_once_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stirred(build_model("resmlp", classes=4))
    took = {1: 1.0, 3: 2.0, 4: 9.0}  # seconds
    monkeypatch.setattr(module, "_seconds", lambda run, x: took[1] * len(x) if run == made._in_parts else took[len(x)])
    made = Predictor(model, "onnxruntime", 64)
    for count in (3, 4, 3, 4, 3, 35):
        x = torch.randn(count, 3, 64, 64)
        torch.testing.assert_close(made(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert [shape.batch for shape in made.cache.made] == [1]
    assert made.wholes is not None
    ways = {shape.batch: run for shape, run in made.wholes.made.items()}
    assert ways.keys() == {3, 4}, "32 came once: images one by one"
    assert ways[3] != made._in_parts == ways[4]
    assert [len(each) for each in made.predict([torch.zeros(3, 9, 9, dtype=torch.uint8)] * 2)] == [1, 1]


def test_auto_measures_once_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "anyres")
    tried = [Backend("eager", "fp32"), Backend("openvino", "fp32")]
    monkeypatch.setattr(module, "candidates", lambda *_: tried)  # the compiler takes a minute
    model = stirred(build_model("restv2", classes=5))
    first = Predictor(model, "auto", 64)
    assert {timing.backend for timing in first.timings} == {"eager:fp32", "openvino:fp32"}
    assert first.timings[0].ms <= first.timings[1].ms
    assert str(first.backend) == first.timings[0].backend
    assert "the fastest of 2 here" in caplog.messages[-1]
    monkeypatch.setattr(module, "ROUNDS", 0)  # it would fail if it measured again
    again = Predictor(model, "auto", 64)
    assert (again.backend, again.timings) == (first.backend, first.timings)
    assert "as measured before" in caplog.messages[-1]
    kept = tmp_path / "cache" / "backends.json"
    assert len(json.loads(kept.read_text())) == 1
    kept.write_text("{ damaged")
    monkeypatch.setattr(module, "ROUNDS", 1)
    assert Predictor(model, "auto", 64).timings


def test_auto_believes_no_engine_that_answers_otherwise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "anyres")

    def crooked(model: torch.nn.Module, choice: Backend, *rest: object, **options: object) -> Runner:
        run = build(model, choice, *rest, **options)  # type: ignore[arg-type]
        return run if choice.engine == "eager" else lambda x: run(x) + 1

    monkeypatch.setattr(module, "build", crooked)
    monkeypatch.setattr(module, "candidates", lambda *_: [Backend("eager", "fp32"), Backend("openvino", "fp32")])
    made = Predictor(stirred(build_model("resmlp", classes=5)), "auto", 64)
    assert str(made.backend) == "eager:fp32"
    assert any("openvino:fp32 is left out: its logits are" in message for message in caplog.messages)


def test_candidates_here() -> None:
    found = set(map(str, candidates(CPU, ("fp32", "bf16"))))
    assert {"eager:fp32", "inductor:fp32", "onnxruntime:fp32", "openvino:fp32"} <= found
    assert "onnxruntime:bf16" not in found
    assert ("openvino:bf16" in found) == has_bf16(CPU)


def test_pictures_of_every_kind_become_classes(tmp_path: Path) -> None:
    model = stirred(build_model("restv2", classes=3))
    made = Predictor(model, "eager", 64, batch=2, names=("a", "b", "c"))
    picture = draw(0, 80)
    picture.save(tmp_path / "one.png")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    answers = made.predict([tmp_path / "one.png", picture, pixels], top=2)
    assert [[p.name for p in pair] for pair in answers] == [[p.name for p in answers[0]]] * 3
    best, second = answers[0]
    assert [pair[0].probability for pair in answers] == pytest.approx([best.probability] * 3, rel=1e-5)
    assert best.probability >= second.probability
    assert best.name == "abc"[best.label]
    with torch.no_grad():
        assert best.label == int(model.eval()(made.prepare([picture])).argmax())


def test_the_training_model_stays_as_it_is() -> None:
    model = stirred(build_model("restv2", classes=3)).train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    Predictor(model, "eager:bf16" if has_bf16(CPU) else "eager", 64).forward(torch.randn(1, 3, 64, 64))
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"backend": "openvion"},
            "backend 'openvion' is none of auto, eager, inductor, onnxruntime, openvino; did",
        ),
        ({"backend": "eager:fp16"}, "precision 'fp16' is none of fp32, bf16, int8"),
        ({"backend": "auto:fp8"}, "precision 'fp8' is none of fp32, bf16, int8"),
        ({"backend": "openvino:int8"}, "openvino:int8 needs some real images to read its ranges from"),
        (
            {"backend": "onnxruntime:bf16"},
            "onnxruntime has no bf16 for these models: use eager or inductor or openvino",
        ),
        ({"size": "big"}, "size 'big' is neither a side"),
        ({"batch": 0}, "batch=0 must be 1 or more"),
    ],
)
def test_mistakes_in_one_line(options: dict[str, object], said: str) -> None:
    model = build_model("restv2", classes=3)
    with pytest.raises(UserError) as error:
        Predictor(model, **{"size": 64} | options).forward(torch.randn(1, 3, 64, 64))  # type: ignore[arg-type]
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_another_size_or_a_broken_picture(tmp_path: Path) -> None:
    made = Predictor(build_model("restv2", classes=3), "eager", 64)
    with pytest.raises(UserError, match=r"made for 64 px, not for 32x48"):
        made(torch.randn(1, 3, 32, 48))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg is unreadable"):
        made.predict([tmp_path / "broken.jpg"])
    with pytest.raises(UserError, match=r"uint8 \(3, h, w\)"):
        made.predict([torch.zeros(3, 8, 8)])


def test_pictures_are_seen_as_asked() -> None:
    model = build_model("restv2", classes=3)
    grey = Image.new("RGB", (50, 40), (128, 128, 128))
    seen = Preprocessing((0.5,) * 3, (0.25,) * 3, 1.0)
    made = Predictor(model, "eager", 32, preprocessing=seen)
    assert torch.allclose(made.prepare([grey]), torch.full((1, 3, 32, 32), (128 / 255 - 0.5) / 0.25), atol=1e-6)


def test_many_sizes_compile_only_what_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, tuple[int, ...]]] = []

    def counted(
        model: torch.nn.Module, choice: Backend, example: torch.Tensor, *rest: object, **options: object
    ) -> Runner:
        built.append((choice.engine, tuple(example.shape[2:])))
        return build(model, choice, example, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "build", counted)
    monkeypatch.setattr(compiled_cache, "KEPT", 3)
    model = stirred(build_model("deit", classes=4))  # patches of 8: sides that round up alike share a program
    made = Predictor(model, "onnxruntime", 64, batch=2, any_size=True)
    plain = model.eval()

    def ask(*sides: int) -> list[tuple[str, tuple[int, ...]]]:
        built.clear()
        for side in sides:
            x = torch.randn(2, 3, side, 24)
            with torch.no_grad():
                torch.testing.assert_close(made(x), plain(x), rtol=1e-4, atol=1e-4)
        return built

    assert ask(*range(8, 120, 8)) == []  # each size once: eager answers
    assert ask(*range(8, 120, 8)) == []  # and again, too long ago
    assert ask(33, 40, 37, 39) == [("onnxruntime", (40, 24))]  # one program for the four
    assert ask(16, 24, 16, 24, 40) == [("onnxruntime", (16, 24)), ("onnxruntime", (24, 24))]
    assert ask(32, 32, 40) == [("onnxruntime", (32, 24))]  # the fourth takes the place of 16
    assert [shape.height for shape in made.cache.made] == [24, 32, 40]
    assert made(torch.randn(1, 3, 24, 24)).shape == (1, 4)


def test_any_size_by_eager_and_without_int8(tmp_path: Path) -> None:
    model = stirred(build_model("restv2", classes=3))
    made = Predictor(model, "eager", 64, any_size=True)
    for sides in ((64, 64), (33, 70), (33, 70)):
        x = torch.randn(1, 3, *sides)
        with torch.no_grad():
            torch.testing.assert_close(made(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="int8 is made for one size"):
        Predictor(model, "openvino:int8", 64, any_size=True, calibration=[draw(0, 80)])


@pytest.mark.parametrize(("most", "expected"), [(None, 10), (8, 8)])
def test_more_shapes_are_compiled_than_pytorchs_limit(
    most: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A predictor of 256 images has nine programs; PyTorch compiles eight of one class and runs the ninth eagerly."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(len(compiled))
        return graph

    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda made, dynamic, options: own(made, dynamic=dynamic, backend=backend))
    monkeypatch.setattr(inductor, "RECOMPILE_LIMIT", most or inductor.RECOMPILE_LIMIT)
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    for batch in range(1, 11):
        build(model, Backend("inductor", "fp32"), torch.randn(batch, 3, 8, 8))
    assert len(compiled) == expected
    torch._dynamo.reset()


def test_kernels_want_a_cuda_device() -> None:
    assert str(Backend.parse("inductor+triton:bf16")) == "inductor+triton:bf16"
    assert Backend.parse("eager+triton") == Backend("eager", "fp32", kernels=True)
    with pytest.raises(UserError, match="backend 'openvino\\+triton' is none of auto, eager"):
        Backend.parse("openvino+triton")
    with pytest.raises(
        BackendUnavailable, match=r"^eager\+triton:fp32: Triton's kernels need a CUDA device, here it is cpu$"
    ):
        Predictor(build_model("cait"), "eager+triton", 64).forward(torch.randn(1, 3, 64, 64))
    assert not any(choice.kernels for choice in candidates(CPU, ("fp32", "bf16")))
    if triton_here():
        found = {str(c) for c in candidates(torch.device("cuda"), ("fp32",))}
        assert found == {"eager:fp32", "inductor:fp32", "eager+triton:fp32", "inductor+triton:fp32"}


def test_several_labels_are_decided_each_by_itself() -> None:
    model = stirred(build_model("resmlp", classes=4))
    made = Predictor(model, "eager", 64, activation="sigmoid")
    picture = torch.randint(0, 256, (3, 70, 60), dtype=torch.uint8)
    shares = made(made.prepare([picture])).sigmoid()[0]
    (found,) = made.predict([picture], top=4)
    assert [one.probability for one in found] == pytest.approx(sorted(shares.tolist(), reverse=True))


def test_inductor_compiles_each_shape_once() -> None:
    """Counted by PyTorch's compiler itself: one graph when the runner is built, none when it runs again.

    In a process of its own, as the tests' checker of annotations breaks graphs.
    """
    code = """
import torch
from anyres.deploy.engines.backend import Backend, build
from anyres.deploy.fuse import fuse
from tests.models.zoo import build as build_model, stirred
counters = torch._dynamo.utils.counters
model, x = stirred(build_model("deit", classes=3, depth=1)), torch.randn(2, 3, 16, 24)
run = build(fuse(model, (16, 24)), Backend("inductor"), x)
compiled = dict(counters["stats"])
generated = sum(n for name, n in counters["inductor"].items() if name.startswith("fxgraph_cache_"))
assert compiled["unique_graphs"] == 1, compiled
assert generated >= 1, counters["inductor"]
for pixels in (x, x.flip(0)):
    with torch.no_grad():
        torch.testing.assert_close(run(pixels), model.eval()(pixels), rtol=1e-4, atol=1e-4)
assert dict(counters["stats"]) == compiled, counters["stats"]
assert not counters["graph_break"], counters["graph_break"]
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_engine_is_one_table_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered, it can be named, is measured by auto, and refuses what its entry rules out."""
    monkeypatch.setattr(backends, "ENGINES", dict(backends.ENGINES))

    def doubling(spec: BuildSpec) -> Runner:
        return lambda x: 2 * spec.model(x)

    register_engine(Engine("doubling", doubling, ("fp32",)))
    assert Backend("doubling") in candidates(CPU)
    model = stirred(build_model("resmlp", classes=3))
    made = Predictor(model, "doubling", 64)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(made(x), 2 * model.eval()(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(BackendUnavailable, match="doubling has no bf16"):
        Predictor(model, "doubling:bf16", 64)(x)
    with pytest.raises(UserError, match="cannot be called 'eager'"):
        register_engine(Engine("eager", doubling, ("fp32",)))


class Unfolded(torch.nn.Sequential):
    """A model of another package, by the contract: no folded form."""

    def __init__(self) -> None:
        conv = torch.nn.Conv2d(3, 8, 3, 2, 1)
        super().__init__(
            conv, torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)
        )
        self.num_classes = 4
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}


@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "openvino"])
def test_a_model_without_a_folded_form_runs_unfolded(engine: str) -> None:
    model = Unfolded().eval()
    x = torch.randn(2, 3, 24, 40)
    copied = fuse(model, (24, 40))
    assert type(copied) is Unfolded
    assert copied is not model
    with torch.no_grad():
        assert torch.equal(copied(x), model(x))
        run = build(copied, Backend(engine), x)
        torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-4)
    assert all(p.requires_grad for p in model.parameters())


class Unconvertible(Unfolded):
    """Uses an operation that OpenVINO does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        smaller = torch.nn.functional.interpolate(x, (16, 16), mode="bicubic", antialias=True)
        return super().forward(smaller)


def test_an_operation_that_an_engine_lacks_is_one_line() -> None:
    x = torch.randn(1, 3, 24, 40)
    with pytest.raises(BackendUnavailable, match=r"openvino:fp32: OpenVINO cannot convert this model: .*bicubic2d_aa"):
        build(Unconvertible().eval(), Backend("openvino"), x)


def test_huge_pages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[bool] = []
    monkeypatch.setattr(backends, "use_huge_pages", lambda: moved.append(True))
    model = build_model("resmlp", classes=3)
    x = torch.randn(1, 3, 64, 64)
    Predictor(model, "openvino", 64)(x)
    assert not moved
    Predictor(model, "openvino", 64, huge_pages=True)(x)
    assert moved
