"""Weights: every layout loads to the same logits; a file that is broken or does not fit leaves the model as it was."""

import argparse
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

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
        assert read_metadata(place) == about
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
    with pytest.raises(UserError, match="No such file or directory"):
        save_weights({"x": torch.zeros(2)}, tmp_path / "nowhere" / "a.safetensors", {})


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("hacked",))


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
        "no state dict but nothing": saved("nothing.pth", {}),
        "'epoch' is of type int": saved("number.pth", {"epoch": 3}),
        r"12 missing \(blocks.0.gamma_1, .*, \.\.\.\)": saved("part.pth", without),
        r"1 unexpected \(extra\)": saved("more.pth", state | {"extra": torch.ones(1)}),
        r"1 of another shape \(norm.alpha \(3,\) for \(128,\)\)": saved(
            "shape.pth", state | {"norm.alpha": torch.ones(3)}
        ),
        "has 9 classes, the model 4": saved("head.pth", build(classes=9).state_dict()),
        "mixes 10 tokens, no square": saved("odd.pth", state | {"blocks.0.attn.weight": torch.ones(10, 10)}),
        "another shape": saved("flat.pth", state | {"blocks.0.attn.weight": torch.ones(64, 10)}),
        "missing": saved("family.pth", build("restv2_nano").state_dict()),
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
    with pytest.raises(UserError, match="has 9 classes, the model 0"):
        load_weights(headless, tmp_path / "nine.pth")
    load_weights(headless, tmp_path / "nine.pth", replace_head=True)


def test_resmlp_is_carried_to_the_models_grid(tmp_path: Path) -> None:
    """A model built at another size and loaded equals the model resampled on the fly."""
    source = build(seed=1, any_size=True)
    save_weights(source, tmp_path / "model.safetensors", {})
    for size in (96, (48, 96)):
        model = create_model("resmlp_nano", num_classes=4, img_size=size, pretrained=tmp_path).eval()
        x = torch.randn(1, 3, *((size, size) if isinstance(size, int) else size))
        torch.testing.assert_close(model(x), source(x))
