"""Teachers from files that other programs left behind.

A pickle in torch.hub's cache, in the hub's, in ours or given as a file ran when its teacher was opened, also offline;
other weights under the name of a known file were taken silently; the teacher of DeiT's recipes was a model that only
timm has, under a name that nothing knew.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import timm
import torch
from torchvision import models

from anyres.config import UserError
from anyres.models import create_model
from anyres.models.fetch import _place, fetch
from anyres.models.index import known_weights
from anyres.runs.opened import load
from anyres.runs.teacher import open_teacher

RESNET = models.get_model_weights("resnet18").DEFAULT.url
SHUFFLE = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
"""Its name has ten digits of its SHA-256."""
SENET = timm.get_pretrained_cfg("legacy_seresnet18.in1k")
"""timm has no copy of its weights on the hub."""


class Harm:
    """What makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every cache in a folder of its own, and no network."""
    for name, folder in (("TORCH_HOME", "torch"), ("ANYRES_CACHE", "anyres")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    return tmp_path


def plant(file: Path, mark: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"weight": Harm(mark)}}, file)
    return file


def test_the_mark_is_made_by_whoever_unpickles(tmp_path: Path) -> None:
    torch.load(plant(tmp_path / "x.pth", tmp_path / "ran"), weights_only=False)
    assert (tmp_path / "ran").is_dir()


TEACHERS = ["torchvision:resnet18", "timm:legacy_seresnet18.in1k", "timm:resnet18.a1_in1k", "regnety_160.teacher"]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_pickle_in_a_cache_never_runs(teacher: str, home: Path) -> None:
    urls = [RESNET, SENET.url, *(row.url for row in known_weights() if row.url)]
    for url in urls:
        for file in (home / "torch/hub/checkpoints" / Path(urlsplit(url).path).name, _place(url).file):
            plant(file, home / "ran")
    folder = home / "hub/models--timm--resnet18.a1_in1k"
    snapshot = folder / "snapshots" / ("a" * 40)
    for name in ("model.safetensors", "pytorch_model.bin"):
        plant(snapshot / name, home / "ran")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("a" * 40)
    with pytest.raises(UserError) as caught:
        open_teacher(teacher, None)
    assert "\n" not in str(caught.value)
    assert not (home / "ran").exists()


@pytest.mark.parametrize("teacher", ["torchvision:resnet18", "timm:test_resnet", "restv2_nano", "regnety_160.teacher"])
def test_a_pickle_given_as_a_teachers_weights_never_runs(teacher: str, home: Path) -> None:
    with pytest.raises(UserError, match="refused: it holds") as caught:
        open_teacher(teacher, str(plant(home / "x.pth", home / "ran")))
    assert "\n" not in str(caught.value)
    assert not (home / "ran").exists()


@pytest.mark.parametrize(("teacher", "url"), [("resnet18", RESNET), ("shufflenet_v2_x0_5", SHUFFLE)])
def test_other_weights_under_the_name_of_known_ones_are_refused(teacher: str, url: str, home: Path) -> None:
    file = _place(url).file
    file.parent.mkdir(parents=True)
    torch.save(models.get_model(teacher, weights=None).state_dict(), file)
    with pytest.raises(UserError, match="is not the file wanted: its SHA-256 begins"):
        open_teacher(f"torchvision:{teacher}", None)


@pytest.mark.parametrize("digits", [8, 10, 16, 63, 64])
def test_as_many_digits_of_a_digest_as_a_name_has_are_checked(digits: int, home: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()[:digits]
    wrong = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    for name, fits in ((digest, True), (wrong, False)):
        url = f"https://example.org/net-{name}.pth"
        file = _place(url).file
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
        if fits:
            assert fetch(url) == file
        else:
            with pytest.raises(UserError, match="is not the file wanted"):
                fetch(url)


def test_weights_of_torchvision_come_from_our_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file's digest fits, they are what a file of them is."""
    torch.manual_seed(0)
    model = models.get_model("shufflenet_v2_x0_5", weights=None).eval()
    torch.save(model.state_dict(), home / "x.pth")
    digest = hashlib.sha256((home / "x.pth").read_bytes()).hexdigest()
    url = f"{SHUFFLE.rpartition('-')[0]}-{digest[:10]}.pth"
    known = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    monkeypatch.setattr(type(known), "url", url, raising=False)
    file = _place(url).file
    file.parent.mkdir(parents=True)
    (home / "x.pth").rename(file)
    made = open_teacher("torchvision:shufflenet_v2_x0_5", None)
    view = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(made.model(view), model(view))


@torch.no_grad()
def test_deits_teacher_is_timms_regnet(tmp_path: Path) -> None:
    """By its own name and by timm's, with its authors' file, which sees images as they published it."""
    torch.manual_seed(0)
    model = timm.create_model("regnety_160", num_classes=3).eval()
    file, view = tmp_path / "regnety_160.pth", torch.randn(2, 3, 32, 48)
    torch.save({"model": model.state_dict()}, file)
    expected = model(view)
    known, taught = load("regnety_160.teacher", str(file)), open_teacher("regnety_160", str(file))
    for opened in (known.model, taught.model):
        torch.testing.assert_close(opened.cpu()(view), expected, rtol=0, atol=2e-7)
    data = known.recipe.data
    assert (taught.mean, taught.std) == (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert taught.own == known.recipe.views.parsed[0] == (224, 224)
    assert known.recipe.evaluate.crop == 0.875
    file.unlink()


def test_the_published_file_of_deits_teacher_is_what_is_asked_for(home: Path) -> None:
    url = "dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth"
    for name, weights in (
        ("regnety_160.teacher", None),
        ("regnety_160", "regnety_160.teacher"),
        ("timm:regnety_160", "regnety_160.teacher"),
    ):
        with pytest.raises(UserError, match=url):
            open_teacher(name, weights)
    with pytest.raises(UserError, match=url):
        create_model("timm:regnety_160", pretrained="regnety_160.teacher")
