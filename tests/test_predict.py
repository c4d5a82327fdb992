"""``anyres predict`` on folders and patterns: one row for each image, on the screen, in JSON and in CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from anyres.config import UserError
from anyres.data.wanted_files import wanted_files
from tests.command import anyres, refused
from tests.conftest import TinyRun
from tests.pictures import draw


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, the last in a folder, a file that is none, and a text."""
    root = tmp_path_factory.mktemp("photos")
    (root / "inner").mkdir()
    for i, name in enumerate(("a.png", "b.PNG", "inner/=c.jpg")):
        draw(i, i).save(root / name)
    (root / "bad.jpg").write_text("no picture")
    (root / "notes.txt").write_text("a text")
    return root


def test_folders_and_patterns_stand_for_their_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    inner, flat = Path("inner/=c.jpg"), [Path("a.png"), Path("b.PNG"), Path("bad.jpg")]
    found, notes = wanted_files(["."])
    assert found == [*flat, inner]
    assert notes == ["1 files without an image ending (first: notes.txt): left out"]
    assert wanted_files(["b.PNG", "*", "inner"]) == (
        [flat[1], flat[0], flat[2], inner],
        ["*: 1 files without an image ending: left out"],
    )
    assert wanted_files(["**/*.jpg"])[0] == [flat[2], inner]
    assert wanted_files(["inn*"])[0] == [inner]
    assert wanted_files(["*.txt", "none.jpg"])[0] == [Path("notes.txt"), Path("none.jpg")]
    Path("odd[1].png").write_bytes(Path("a.png").read_bytes())
    assert wanted_files(["odd[1].png"])[0] == [Path("odd[1].png")]
    Path("odd[1].png").unlink()
    with pytest.raises(UserError, match=r"no file matches \*\.gif: correct the pattern"):
        wanted_files(["*.gif"])
    Path("empty").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="empty has no image at any depth"):
        wanted_files(["empty"])
    Path("empty").rmdir()


def test_every_image_is_a_row_on_the_screen_in_json_and_in_csv(tiny_run: TinyRun, photos: Path, tmp_path: Path) -> None:
    table, into = tmp_path / "new" / "a.csv", tmp_path / "a.json"
    answer = anyres("predict", tiny_run.folder, photos, "--top", 2, "--csv", table, "--json", into)
    assert answer.code == 2
    assert answer.out == f"4 images: written to {into} and {table}\n"
    assert answer.err.splitlines()[-1].startswith(f"error: {photos / 'bad.jpg'} is unreadable: no JPEG")
    with table.open(newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert list(rows["a.png"]) == ["image", "name_1", "probability_1", "name_2", "probability_2", "error"]
    assert list(rows) == ["a.png", "b.PNG", "bad.jpg", "=c.jpg"]
    assert rows["bad.jpg"]["error"].startswith("no JPEG")
    assert rows["bad.jpg"]["name_1"] == rows["a.png"]["error"] == ""
    said = {Path(row["image"]).name: row for row in json.loads(into.read_text())["images"]}
    assert said.keys() == rows.keys()
    for name in ("a.png", "=c.jpg"):
        first = said[name]["classes"][0]
        assert (first["name"], first["probability"]) == (rows[name]["name_1"], float(rows[name]["probability_1"]))
    printed = anyres("predict", tiny_run.folder, photos, "--top", 2, "--json", "-")
    assert json.loads(printed.out) == json.loads(into.read_text())
    shown = anyres("predict", tiny_run.folder, photos).out.splitlines()
    assert [line.split()[0] for line in shown[1:]] == [row["image"] for row in json.loads(printed.out)["images"]]
    assert "no JPEG, PNG" in next(line for line in shown if "bad.jpg" in line)
    assert not list(tmp_path.rglob(".*partial"))


def test_many_broken_images_are_one_line(tiny_run: TinyRun, photos: Path) -> None:
    names = [photos / f"{i}.jpg" for i in range(5)]
    line = refused("predict", tiny_run.folder, *names)
    assert line.count("is unreadable") == 3
    assert line.endswith("; 5 of 5 images in all")
    assert "--csv writes a file" in refused("predict", tiny_run.folder, names[0], "--csv", "-")


def test_the_next_command_comes_after_the_answers(tiny_run: TinyRun, photos: Path) -> None:
    words = ("predict", tiny_run.folder, photos / "a.png", photos / "b.PNG")
    assert anyres(*words).err.splitlines()[-1].startswith(f"next: `anyres predict {tiny_run.folder} ")
