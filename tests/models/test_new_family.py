"""A family of another package: registered, trained, resumed, measured and asked by its name; and what is refused."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch

import anyres
from anyres.config import UserError
from anyres.models import registry
from anyres.models.contract import Traits
from tests.command import anyres as command
from tests.pictures import make_folder

EXAMPLE = Path(__file__).parents[2] / "examples" / "new_family.py"


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example as a module, unknown until it is registered, and forgotten afterwards."""
    spec = importlib.util.spec_from_file_location("new_family", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "new_family", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(registry, "_registered", {})
    return module


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60


def test_the_whole_river(family: ModuleType, tmp_path: Path) -> None:
    anyres.register_family(family)
    data, out = make_folder(tmp_path / "shapes", per_class=8), tmp_path / "run"
    values = ("views.sizes=[64, 48, 32]", "data.batch_size=8", "train.epochs=2", "evaluate.sizes=[32, 48x40]")
    more = ("objective.target=gap", "data.workers=0", "train.checkpoint_every=1")
    words = ("train", "tinyconv_8", "--data", data, "--out", out, *values, *more)
    answer = command(*words)
    assert answer.code == 0, answer.err
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()  # as a run that was stopped before its end
    again = command(*words)
    assert again.code == 0, again.err
    assert "continuing from step" in again.err
    assert (out / "model.safetensors").read_bytes() == weights
    measured = command("curve", out, "--sizes", "32,64,40x56")
    assert measured.code == 0, measured.err
    assert "40x56" in (out / "curve.csv").read_text() or "40,56" in (out / "curve.csv").read_text()
    image = next(data.rglob("*.jpg"))
    for backend in ((), ("--backend", "openvino")):
        told = command("predict", out, image, "--size", "40", *backend)
        assert told.code == 0, told.err
        assert image.parent.name in told.out
    listed = command("models", "tinyconv*")
    assert "tinyconv_16" in listed.out, listed.err


def test_it_is_known_everywhere(family: ModuleType) -> None:
    assert not registry.is_model("tinyconv_8")
    anyres.register_family(family)
    anyres.register_family(family)
    assert anyres.list_models("tiny*") == ["tinyconv_16", "tinyconv_8"]
    model = anyres.create_model("tinyconv_16", 3, in_chans=2)
    assert model(torch.zeros(1, 2, 30, 50)).shape == (1, 3)
    assert timm.is_model("tinyconv_8")
    assert timm.create_model("tinyconv_8", num_classes=5)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert model.traits == Traits()
    folded = anyres.fuse(model.eval(), 32)
    torch.testing.assert_close(folded(torch.ones(1, 2, 32, 32)), model(torch.ones(1, 2, 32, 32)))
    with pytest.raises(UserError, match="tinyconv_16 has no option 'widht'; did you mean 'width'"):
        anyres.create_model("tinyconv_16", widht=3)
    with pytest.raises(UserError, match="no weights of tinyconv_8 were published"):
        anyres.create_model("tinyconv_8", pretrained=True)
    with pytest.raises(UserError, match="tinyconv_8 does not say in which layer a parameter is"):
        anyres.create_model("tinyconv_8").group_matcher()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"VARIANTS": None}, "no family of models: it has no VARIANTS"),
        ({"VARIANTS": {"S60": None}}, "calls a model 'S60', as patchconvnet does"),
        ({"VARIANTS": {"restv2_nano": None}}, "as restv2 does"),
        ({"VARIANTS": {"a/b": None}}, "neither a colon nor a slash"),
        ({"ALIASES": {"small": "nothing"}}, "alias 'small' of 'nothing', which is not in its VARIANTS"),
    ],
)
def test_what_is_no_family_is_one_line(family: ModuleType, changes: dict[str, Any], message: str) -> None:
    for name, value in changes.items():
        vars(family)[name] = value
    if changes.get("VARIANTS", 1) is None:
        del vars(family)["VARIANTS"]
    with pytest.raises(UserError, match=message) as caught:
        anyres.register_family(family)
    assert "\n" not in str(caught.value)


def test_entry_points(family: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A package's families are there without a call; one that cannot be imported is named and left out."""
    points = [EntryPoint(n, v, registry.ENTRY_POINTS) for n, v in (("bad", "no_such_module"), ("good", "new_family"))]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry._asked = False
    try:
        assert "tinyconv_8" in anyres.list_models()
        assert anyres.create_model("tinyconv_8", 2).num_classes == 2
    finally:
        registry._asked = False
    assert "the family bad of no_such_module is left out: No module named 'no_such_module'" in caplog.text
