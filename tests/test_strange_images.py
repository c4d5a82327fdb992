"""A folder with 1 truncated JPEG, 1 text file renamed .jpg, 1 empty class, 1 CMYK, 1 16-bit PNG, 1 EXIF-rotated, 1 GIF,
1 1x1 image: trains and evaluates, and says precisely what it did with each."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import Answer, anyres
from tests.pictures import draw, make_folder

SAID = {
    "disc/truncated.jpg": r"unreadable \(.*truncated.*\): left out",
    "disc/text.jpg": r"unreadable \(no JPEG, PNG, WebP, TIFF or other picture\): left out",
    "disc/cmyk.jpg": r"CMYK converted to RGB",
    "square/sixteen.png": r"16-bit grey scaled to 8 bit",
    "square/rotated.jpg": r"rotated by its EXIF orientation 6",
    "square/moving.gif": r"animated GIF: first of 3 frames(; \w+ converted to RGB)?",
    "stripes/dot.png": r"a single pixel: enlarged to every view",
}
EMPTY = "class 'nothing' has no images: left out"


def make_strange(root: Path) -> Path:
    """An ordinary folder of 3 x 8 pictures, and one of everything."""
    make_folder(root, per_class=8)
    good = (root / "disc" / "00.jpg").read_bytes()
    (root / "disc" / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (root / "disc" / "text.jpg").write_text("Dear diary, this is no picture.\n")
    (root / "nothing").mkdir()
    draw(0, 90).convert("CMYK").save(root / "disc" / "cmyk.jpg")
    grey = np.asarray(draw(1, 91).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(root / "square" / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(1, 92).save(root / "square" / "rotated.jpg", exif=exif)
    frames = [draw(1, 93 + i, side=64).resize((64, 64)) for i in range(3)]
    frames[0].save(root / "square" / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), (200, 30, 30)).save(root / "stripes" / "dot.png")
    return root


@pytest.fixture(scope="module", params=["in memory", "read when asked for, by a worker"])
def strange(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The run folder, and what its training said."""
    root = tmp_path_factory.mktemp("strange")
    make_strange(root / "shapes")
    values = ["views.sizes=[48, 32]", "data.batch_size=8", "train.epochs=2", "evaluate.sizes=[32, 1]"]
    if request.param != "in memory":
        values += ["data.cache_gib=0", "data.workers=1"]
    return root / "run", anyres("train", "restv2_nano", "--data", root / "shapes", "--out", root / "run", *values)


def test_trains_and_says_precisely_what_it_did_with_each(strange: tuple[Path, Answer]) -> None:
    run, answer = strange
    assert answer.code == 0, answer.err
    lines = answer.err.splitlines()
    assert EMPTY in lines
    for name, what in SAID.items():
        assert [line for line in lines if re.fullmatch(rf"(training|held-out) image {name}: {what}", line)], name
    notes = json.loads((run / "run.json").read_text())["notes"]
    assert EMPTY in notes
    for name, what in SAID.items():
        assert len([note for note in notes if re.fullmatch(f"{name}: {what}", note)]) == 1, name
    page = html.unescape((run / "report.html").read_text())
    assert EMPTY in page
    for name, what in SAID.items():
        assert re.search(f"{name}: {what}", page), name
    plain = {f"{kind}/{i:02d}.jpg" for kind in ("disc", "square", "stripes") for i in range(8)}
    assert not [note for note in notes if note.split(":")[0] in plain]


def test_evaluates_and_says_precisely_what_it_did_with_each(strange: tuple[Path, Answer]) -> None:
    run, _ = strange
    data = run.parent / "shapes"
    said: list[str] = []
    for split in ("train", "val"):
        answer = anyres("eval", run, "--sizes", "32,1", "--split", split)
        assert answer.code == 0, answer.err
        said += answer.err.splitlines()
    assert EMPTY in said
    for name, what in SAID.items():
        assert [line for line in said if re.fullmatch(rf"(train|val) image {name}: {what}", line)], name
    answer = anyres("predict", run, *(data / name for name in SAID))
    assert answer.code == 2
    assert answer.err.count("is unreadable") == 2
    assert answer.err.count("\n") == 1
