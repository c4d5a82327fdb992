"""Weights: every layout loads to the same logits; a file that is broken or does not fit leaves the model as it was."""

import argparse
import functools
import json
import os
import stat
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

import anyres.models.state_files as state_files
import anyres.models.weights as weights
from anyres.config import UserError
from anyres.models import create_model
from anyres.models.contract import Backbone
from anyres.models.weights import load_weights, read_metadata, save_weights

State = dict[str, Tensor]


def build(name: str = "resmlp_nano", seed: int = 0, classes: int = 4, **options: object) -> Backbone:
    torch.manual_seed(seed)
    model = create_model(name, num_classes=classes, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def timms_names(state: State) -> State:
    pairs = (
        ("patch_embed.", "stem."),
        (".attn.", ".linear_tokens."),
        (".mlp.", ".mlp_channels."),
        ("gamma_1", "ls1"),
        ("gamma_2", "ls2"),
    )
    for ours, theirs in pairs:
        state = {key.replace(ours, theirs): tensor for key, tensor in state.items()}
    return {k: t.reshape(1, 1, -1) if k.endswith(("alpha", "beta")) else t for k, t in state.items()}


LAYOUTS: dict[str, Callable[[State], object]] = {
    "flat": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3, "args": argparse.Namespace(lr=0.1, names=["a"])},
    "state_dict": lambda s: {"state_dict": s},
    "model_ema": lambda s: {"model_ema": s, "optimizer": {"state": {}}},
    "state_dict_ema": lambda s: {"state_dict_ema": s},
    "model and its average": lambda s: {"model_ema": {k: t + 1 for k, t in s.items()}, "model": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "module.": lambda s: {"model": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "teacher": lambda s: {"teacher": prefixed(s, "module.backbone."), "student": {}},
    "backbone.": lambda s: prefixed(s, "backbone."),
    "double": lambda s: {k: t.double() for k, t in s.items()},
    "timm": timms_names,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_every_layout_loads_to_the_same_logits(layout: str, suffix: str, tmp_path: Path) -> None:
    source, model, x = build(seed=1), build(seed=2), torch.randn(1, 3, 64, 64)
    path = tmp_path / f"weights{suffix}"
    torch.save(LAYOUTS[layout](source.state_dict()), path)
    assert not torch.equal(model(x), source(x))
    load_weights(model, path)
    torch.testing.assert_close(model(x), source(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resformer_nano", "restv2_nano", "resmlp_nano"])
def test_round_trip_through_safetensors(name: str, tmp_path: Path) -> None:
    source, model, x = build(name, seed=1), build(name, seed=2), torch.randn(1, 3, 64, 64)
    about = {"anyres": json.dumps({"name": name, "classes": ["a", "b", "c", "d"]}), "note": "ünïcode"}
    save_weights(source, tmp_path / "model.safetensors", about)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    for place in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        found = read_metadata(place)
        assert found["note"] == about["note"]
        assert {**json.loads(about["anyres"]), "sha256": ANY} == json.loads(found["anyres"])
        load_weights(model, place)
        for key, tensor in source.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], tensor, rtol=0, atol=0)
    torch.testing.assert_close(model(x), source(x), rtol=0, atol=0)
    again = create_model(name, num_classes=4, pretrained=tmp_path).eval()
    torch.testing.assert_close(again(x), source(x), rtol=0, atol=0)


def test_saving_a_state_dict_and_strided_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights({"x": torch.arange(6).reshape(2, 3).T, "y": torch.ones(2, requires_grad=True)}, path, {})
    assert weights.read_state(path)["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read_metadata(path) == {}


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_weights({"x": torch.ones(2)}, path, {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        save_weights({"x": torch.zeros(2)}, path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert weights.read_state(path)["x"].tolist() == [1, 1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    new = tmp_path / "new" / "a.safetensors"
    monkeypatch.undo()
    save_weights({"x": torch.zeros(2)}, new, {})
    assert weights.read_state(new)["x"].tolist() == [0, 0]


class Hostile:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object] = os.mkdir, *args: object) -> None:
        self.call = (function, args or ("hacked",))

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def broken_files(folder: Path) -> dict[str, Path]:
    """Every way in which a file can be no weights; some fit the model but for one thing."""
    state = build(seed=1).state_dict()

    def saved(name: str, content: object) -> Path:
        torch.save(content, folder / name)
        return folder / name

    def written(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    whole = saved("whole.pth", state).read_bytes()
    save_weights(state, folder / "whole.safetensors", {})
    safe = (folder / "whole.safetensors").read_bytes()
    (folder / "folder").mkdir()
    without = {k: t for k, t in state.items() if not k.startswith("blocks.0.")}
    itself: dict[str, object] = {"epoch": 1}
    itself["model"] = itself
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, and its files remain
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "script.pt")
        sparse = saved("sparse.pth", state | {"head.weight": state["head.weight"].to_sparse()})
    return {
        "there is no file": folder / "missing.pth",
        "holds no model.safetensors": folder / "folder",
        "empty.pth is empty": written("empty.pth", b""),
        "web page": written("page.pth", b"\n<!DOCTYPE html><html>404</html>"),
        "Git LFS pointer": written("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "cut short or another kind of file": written("cut.pth", whole[: len(whole) // 2]),
        "another kind of file": written("noise.pth", bytes(range(1, 256)) * 4),
        "kind of file": written("cut.safetensors", safe[: len(safe) // 2]),
        "cannot be read": written("noise.safetensors", bytes(range(1, 256)) * 4),
        "text.pth cannot be read": written("text.pth", b"these are no weights"),
        "refused: it holds posix.mkdir": saved("hostile.pth", {"model": state, "extra": Hostile()}),
        "no state dict but list": saved("list.pth", [1, 2]),
        "refused: it holds anyres.models.resmlp.ResMLP": saved("module.pth", build()),
        "script.pt cannot be read": folder / "script.pt",
        "no state dict but nothing": saved("nothing.pth", {}),
        "no state dict but Tensor": saved("tensor.pth", torch.ones(3)),
        "no state dict but NoneType": saved("none.pth", None),
        "no state dict but str": saved("string.pth", "weights"),
        "itself.pth is no state dict: 'epoch' is of type int": saved("itself.pth", itself),
        "number.pth is no state dict: 'epoch' is of type int": saved("number.pth", {"epoch": 3}),
        "'args' is of type Ignored": saved("args.pth", {"args": argparse.Namespace()}),
        "'head.weight' is a torch.sparse_coo tensor": sparse,
        "'head.weight' is a torch.strided tensor on meta": saved(
            "meta.pth", state | {"head.weight": state["head.weight"].to("meta")}
        ),
        "holds 'head.bias' twice": saved("twice.pth", state | {"module.head.bias": torch.ones(4)}),
        r"1 of another type \(head.weight torch.int8\)": saved(
            "int8.pth", state | {"head.weight": state["head.weight"].to(torch.int8)}
        ),
        r"12 missing \(blocks.0.gamma_1, .*, \.\.\.\)": saved("part.pth", without),
        r"1 unexpected \(extra\)": saved("more.pth", state | {"extra": torch.ones(1)}),
        r"1 of another shape \(norm.alpha \(3,\) for \(128,\)\)": saved(
            "shape.pth", state | {"norm.alpha": torch.ones(3)}
        ),
        "has 9 classes, the model 4": saved("head.pth", build(classes=9).state_dict()),
        "mixes 10 tokens, no square": saved("odd.pth", state | {"blocks.0.attn.weight": torch.ones(10, 10)}),
        "another shape": saved("flat.pth", state | {"blocks.0.attn.weight": torch.ones(64, 10)}),
        "missing .* the file looks like restv2_nano$": saved("family.pth", build("restv2_nano").state_dict()),
        "unexpected .* the file looks like no model known here$": saved("vision.pth", resnet18().state_dict()),
    }


def test_broken_files_are_one_line_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = build(seed=2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for message, path in broken_files(tmp_path).items():
        with pytest.raises(UserError, match=message) as caught:
            load_weights(model, path)
        line = str(caught.value)
        assert "\n" not in line, line
        assert str(path) in line
        assert len(line) - len(str(path)) < 300, line
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, before[key], rtol=0, atol=0)
    assert not (tmp_path / "hacked").exists()


def test_another_head_is_kept_only_when_asked(tmp_path: Path) -> None:
    torch.save(build(seed=1, classes=9).state_dict(), tmp_path / "nine.pth")
    model = build(seed=2, classes=4)
    head = model.head.weight.clone()
    load_weights(model, tmp_path / "nine.pth", replace_head=True)
    torch.testing.assert_close(model.head.weight, head, rtol=0, atol=0)
    source = build(seed=1, classes=9).state_dict()
    torch.testing.assert_close(model.state_dict()["blocks.0.attn.weight"], source["blocks.0.attn.weight"])
    headless = create_model("resmlp_nano", num_classes=0)
    with pytest.raises(UserError, match="has 9 classes, the model none"):
        load_weights(headless, tmp_path / "nine.pth")
    load_weights(headless, tmp_path / "nine.pth", replace_head=True)


def hostile_calls() -> dict[str, Hostile]:
    """Calls of what is refused, and of what is allowed but must do nothing."""
    return {
        "posix.system": Hostile(os.system, "mkdir hacked"),
        "eval": Hostile(eval, "__import__('os').mkdir('hacked')"),
        "exec": Hostile(exec, "import os; os.mkdir('hacked')"),
        "__import__": Hostile(__import__, "antigravity"),
        "getattr": Hostile(getattr, Path, "mkdir"),
        "subprocess.Popen": Hostile(subprocess.Popen, ["mkdir", "hacked"]),
        "functools.partial": Hostile(functools.partial, os.mkdir, "hacked"),
        "torch.load": Hostile(torch.load, "hostile.pth"),
        "torch.serialization.load": Hostile(torch.serialization.load, "hostile.pth"),
        "numpy.load": Hostile(np.load, "hostile.npy"),
        "pathlib.Path": Hostile(Path),  # no file names it: pickles name the system's kind
        "anyres.models.weights.load_weights": Hostile(load_weights, "a", "b"),
    }


@pytest.mark.parametrize("name", hostile_calls())
def test_no_file_runs_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "antigravity", None)
    state = build().state_dict()
    for zipped in (True, False):
        torch.save(
            {"model": state, "args": hostile_calls()[name]}, "hostile.pth", _use_new_zipfile_serialization=zipped
        )
        with pytest.raises(UserError, match=r"hostile.pth is refused: it holds [\w.]+, not only tensors") as caught:
            load_weights(build(seed=2), "hostile.pth")
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pth"]


def test_what_is_allowed_is_not_made(tmp_path: Path) -> None:
    """Nothing of the named classes runs: they are replaced by a class that does nothing; and torch forgets them."""
    loaded: list[object] = []

    def load(content: object) -> None:
        torch.save(content, tmp_path / "a.pth")
        before = set(torch.serialization.get_safe_globals())
        allowed = [(state_files.Ignored, name) for name in state_files.IGNORED]
        with torch.serialization.safe_globals(allowed):
            loaded.append(torch.load(tmp_path / "a.pth", weights_only=True))
        assert set(torch.serialization.get_safe_globals()) == before

    for content in (
        argparse.Namespace(a=[1]),
        Path("a"),
        PureWindowsPath("b"),
        np.float64(1),
        np.ones(3),
        np.dtype("O"),
    ):
        load(content)
    load(Hostile(np.float64(1).__reduce__()[0], np.dtype("O"), "b"))
    assert all(type(content) is state_files.Ignored and not vars(content) for content in loaded)


def test_what_training_scripts_save_is_no_hindrance(tmp_path: Path) -> None:
    source, model, before = build(seed=1), build(seed=2), set(torch.serialization.get_safe_globals())
    args = argparse.Namespace(
        output_dir=PosixPath("runs/a"),
        data=PurePosixPath("b"),
        share=PureWindowsPath("c"),
        lr=np.float32(0.1),
        seed=np.int64(3),
        flag=np.bool_(True),
        when=np.datetime64("2021-01-01"),
        sizes=np.array([128, 160]),
        dtype=np.dtype("float32"),
        names={"a", "b"},
        nested=argparse.Namespace(x=(1, None)),
        counts=Counter("ab"),
        device=torch.device("cuda"),
        kind=torch.float16,
        shape=torch.Size([2]),
    )
    for zipped in (True, False):
        content = {"model": source.state_dict(), "args": args, "acc": np.float64(82.3), "epoch": np.int64(9)}
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        load_weights(model, tmp_path / "a.pth")
        torch.testing.assert_close(model.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_models(dtype: torch.dtype, tmp_path: Path) -> None:
    source, model = build("restv2_nano", seed=1), build("restv2_nano", seed=2)
    state = {key: tensor.to(dtype) for key, tensor in source.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        save_weights(state, tmp_path / "a.safetensors", {})
        load_weights(model, path)
        for key, tensor in model.state_dict().items():
            assert tensor.dtype == source.state_dict()[key].dtype
            torch.testing.assert_close(tensor, state[key].to(tensor.dtype), rtol=0, atol=0)
    half = build("restv2_nano", seed=2).bfloat16()
    load_weights(half, tmp_path / "a.pth")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_odd_but_legal_tensors(tmp_path: Path) -> None:
    """Views of one storage, strides, parameters, old files: their values count."""
    source, model = build(seed=1), build(seed=2)
    state = source.state_dict()
    shared = torch.stack([state["norm.alpha"], state["norm.beta"]])
    state["norm.alpha"], state["norm.beta"] = shared
    state["head.weight"] = state["head.weight"].T.contiguous().T
    state["head.bias"] = torch.nn.Parameter(state["head.bias"])
    state["blocks.0.gamma_1"] = torch.full((1,), 0.5).expand(len(state["blocks.0.gamma_1"]))
    for zipped in (True, False):
        torch.save(OrderedDict(state), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        load_weights(model, tmp_path / "a.pth")
        torch.testing.assert_close(model.state_dict(), dict(state), rtol=0, atol=0)
    assert {p.is_leaf and p.requires_grad for p in model.parameters()} == {True}


def test_a_model_without_storage_is_refused(tmp_path: Path) -> None:
    save_weights(build(), tmp_path / "model.safetensors", {})
    with torch.device("meta"):
        model = create_model("resmlp_nano", 4)
    with pytest.raises(UserError, match=r"no storage \(device meta\): .* model.to_empty"):
        load_weights(model, tmp_path)
    load_weights(model.to_empty(device="cpu"), tmp_path)


def test_resmlp_is_carried_to_the_models_grid(tmp_path: Path) -> None:
    """A model built at another size and loaded equals the model resampled on the fly."""
    source = build(seed=1, any_size=True)
    save_weights(source, tmp_path / "model.safetensors", {})
    for size in (96, (48, 96)):
        model = create_model("resmlp_nano", num_classes=4, img_size=size, pretrained=tmp_path).eval()
        x = torch.randn(1, 3, *((size, size) if isinstance(size, int) else size))
        torch.testing.assert_close(model(x), source(x))
