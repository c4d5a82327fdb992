"""``anyres look`` and ``anyres.look``: files, a page, tensors, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import anyres as package
from anyres.flow import Size
from anyres.runs.opened import TrainedModel, load
from tests.command import anyres
from tests.pictures import draw

UNTRAINED = ("--weights", "none", "--size", "48x64")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        draw(i, i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def resformer() -> TrainedModel:
    return load("resformer_nano", "none")


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_page_and_drawings_for_each_image(photos: Path, tmp_path: Path) -> None:
    answer = anyres("look", "resformer_nano", photos, *UNTRAINED, "--out", tmp_path)
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert len(lines) == 3
    assert "; attention of layer 5: 2 maps of 6x8" in lines[0]
    for name in ("0", "1"):
        written = {path.stem: size_of(path) for path in (tmp_path / name).glob("*.png")}
        heads = {f"{part}-{kind}" for part in ("mean", "head-1", "head-2") for kind in ("heat", "mask")}
        assert set(written) == {"picture"} | heads
        assert set(written.values()) == {(384, 288)}  # width, height: six times the view
    page = (tmp_path / "look.html").read_text()
    assert page.count('src="data:image/jpeg') == 2 * 7
    assert "What resformer_nano looks at" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page


def test_an_unreadable_image_is_named_and_the_others_are_drawn(photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    words = ("look", "resmlp_nano", photos / "0.png", bad, "--weights", "none", "--out", tmp_path / "out")
    answer = anyres(*words)
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith(f"error: {bad} is unreadable: ")
    assert (tmp_path / "out" / "0" / "heat.png").is_file()
    assert str(bad) in (tmp_path / "out" / "look.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "rollout"), "no method is called 'rollout': attention, cam, gradients, occlusion"),
        (("--layer", "99"), "layer 99 is out of range: resformer_nano has 6, 0 to 5"),
        (("--class", "toucan"), "resformer_nano has no class 'toucan'"),
        (("--class", "3"), "the attention of resformer_nano is the same for every class: use method cam with a class"),
        (("--share", "1.5"), "it must lie between 0 and 1"),
    ],
)
def test_one_line_for_each_mistake(photos: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    answer = anyres("look", "resformer_nano", photos / "0.png", *UNTRAINED, "--out", tmp_path, *words)
    assert answer.code == 2
    assert message in answer.err.splitlines()[-1]


def test_the_python_door_gives_tensors(resformer: TrainedModel, photos: Path) -> None:
    first, second = package.look(resformer, [photos / "0.png", Image.open(photos / "1.png")], size="48x64")
    for seen in (first, second):
        assert seen.maps.shape == (2, 6, 8)
        assert seen.maps.dtype == torch.float32
        assert seen.picture.shape == (3, 48, 64)
        assert seen.pixels().shape == (2, 48, 64)
        assert torch.equal(seen.pixels()[:, ::8, ::8], seen.maps)
        assert seen.masks().dtype == torch.bool
        assert seen.of is None
    answer = package.predict(resformer, photos / "0.png", size="48x64", top=1)[0].values["classes"][0]
    assert first.answer == answer["name"]
    assert first.probability == pytest.approx(answer["probability"], abs=1e-4)


def test_a_class_is_explained_by_its_name(resformer: TrainedModel, photos: Path) -> None:
    (seen,) = package.look(resformer, photos / "0.png", size=32, method="cam", class_name="7")
    assert seen.of == resformer.classes[7]
    assert seen.maps.shape == (1, 4, 4)
    assert seen.layer == 4
    (named,) = package.look(
        resformer, photos / "0.png", size=Size(32, 32), method="cam", class_name=resformer.classes[7]
    )
    assert torch.equal(named.maps, seen.maps)


def test_what_is_missing_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(
        package.UserError, match=r"needs captum, which is not installed: run pip install 'anyres\[maps\]'"
    ):
        package.look(load("resmlp_nano", "none"), photos / "0.png")
