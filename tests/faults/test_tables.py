"""Tables that spreadsheets and people wrote: other signs between cells, quotes that do not close, cells that nobody
quoted, one file under two spellings, labels and lines of any length. Each is read right, or refused with its line."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from anyres.config import UserError
from anyres.data.sources import Source, open_source

CAFE = "café"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images in ``im``, one of them called as a Mac writes it; a link to the first, and a pipe."""
    root = tmp_path_factory.mktemp("tables")
    (root / "im").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(root / f"im/{i}.png")
    Image.new("RGB", (8, 8)).save(root / f"im/{unicodedata.normalize('NFD', CAFE)}.png")
    (root / "im/link.png").symlink_to(root / "im/0.png")
    os.mkfifo(root / "im/pipe.png")
    return root


def read(root: Path, text: str, name: str = "t.csv") -> Source:
    (root / name).write_text(text, encoding="utf-8")
    return open_source(str(root / name), "trainval")


def rows(between: str = ",", slash: str = "/", first: str = "") -> str:
    body = (f"im{slash}{i}.png{between}{('red', 'cyan')[i % 2]}" for i in range(6))
    return f"{first}path{between}label\n" + "\n".join(body)


@pytest.mark.parametrize(
    "text",
    [
        rows(";"),
        rows("\t"),
        rows("|"),
        rows(";", first="sep=;\n"),
        rows(slash="\\"),
        rows().replace("\n", "\r\n"),
        rows().replace("\n", ",\n") + "\n,,\n",  # as a spreadsheet ends its lines
        rows().replace("red", '"red"'),
    ],
)
def test_what_spreadsheets_write_is_read_as_the_plain_table(root: Path, text: str) -> None:
    plain, found = read(root, rows()), read(root, text)
    assert found.classes == ("cyan", "red")
    assert found.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(
    ("text", "said"),
    {
        rows().replace("red", "beetle, black"): r"t\.csv:2: 3 cells under 2 columns: put a name with commas in double",
        rows(";").replace("red", "a;b"): r"t\.csv:2: 3 cells .* with semicolons in double quotes",
        rows().replace("cyan", '"cyan', 1): r"t\.csv:3: no row of cells .*is a quotation mark missing",
        'path,label\nim/0.png,"red\nim/1.png,cyan\nim/2.png,x"\n': r"t\.csv:2: the cell under 'label' goes over",
        'path,label,say\nim/0.png,a,"x\nim/1.png,b,y\nim/2.png,b,z"\n': r"t\.csv:2: the cell under 'say' goes over",
        'path,label\nim/0.png,"a"b\n': r"t\.csv:2: no row of cells",
        "path,label,label\nim/0.png,a,b\n": r"t\.csv:1: the column 'label' stands twice",
        "Path,label\nim/0.png,a\n": r"t\.csv:1: no column 'path'.*did you mean 'Path'",
        "path,labels\nim/0.png\n": r"t\.csv:2: the row ends before the column 'labels'",
        "path,label\nim/0.png,a\n./im//0.png,b\n": r"t\.csv:3: im/0\.png stands on line 2 as a",
        "path,label\nim/0.png,a\nim/../im/0.png,b\n": r"t\.csv:3: im/\.\./im/0\.png stands on line 2 as a",
        "path,label\nim/0.png,a\nim/link.png,b\n": r"t\.csv:3: im/link\.png stands on line 2 as a",
        f"path,label\nim/{CAFE}.png,a\nim/{unicodedata.normalize('NFD', CAFE)}.png,b\n": r":3: .* stands on line 2",
        "path,label\nim/pipe.png,a\n": r"t\.csv:2: .*pipe\.png is no file, but a folder or pipe",
        "path,label\nC:\\im\\0.png,a\n": r"t\.csv:2: no file .*it is written as on Windows",
        f"path,label\n{'x' * 10_000},a\n": r"t\.csv:2: no file .*File name too long",
        f"path,label,split\nim/0.png,a,{'x' * 10_000}\n": r"t\.csv:2: unknown split 'x+\.\.\. ",
    }.items(),
)
def test_what_is_no_table_is_refused_with_its_line(root: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(root, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_file_in_the_other_unicode_form_is_found(root: Path) -> None:
    found = read(root, f"path,label\nim/{CAFE}.png,{CAFE}\nim/0.png,{unicodedata.normalize('NFD', CAFE)}\nim/1.png,x\n")
    assert found.classes == (CAFE, "x")
    assert sorted(record.target for record in found.records) == [0, 0, 1]


def test_labels_of_any_length_are_classes_in_order(root: Path) -> None:
    numbers = ["9", "10", "-3", "0", str(10**18), "7" * 5_000]
    found = read(root, "path,label\n" + "\n".join(f"im/{i}.png,{n}" for i, n in enumerate(numbers)))
    assert len(found.classes) == 6
    lines = [json.dumps({"path": f"im/{i}.png", "label": n}) for i, n in enumerate(numbers)]
    assert read(root, "\n".join(lines), "t.jsonl").classes == ("-3", "0", "9", "10", str(10**18), "7" * 5_000)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"path": "im/0.png", "label": ' + "9" * 5_000 + "}", "no JSON object: Exceeds the limit"),
        ('{"path": "im/0.png", "label": ' + "[" * 100_000 + "}", "no JSON object: maximum recursion"),
        ('{"path": "im/0.png", "label": "a", "label": "b"}', "no JSON object: 'label' stands twice"),
    ],
)
def test_json_that_is_none_is_refused_with_its_line(root: Path, line: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"t\.jsonl:1: {said}"):
        read(root, line, "t.jsonl")


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}", "{0..9999}{0..9999}", "{{a,b}{0..999999},c}", f"{{0..{'9' * 40}}}"]
)
def test_a_pattern_beyond_the_machine_is_refused_at_once(root: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=r"stands for more than 1,000,000 files"):
        open_source(f"{root}/{pattern}.tar", "train")
