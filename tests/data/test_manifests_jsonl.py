from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.data.labels import targets

from anyres.config import UserError
from anyres.data.sources import open_source


def write(folder: Path, *rows: object) -> str:
    path = folder / "table.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_a_jsonl_manifest_is_the_csv_of_the_same_rows(folder: Path) -> None:
    rows = [("cat", i, "Katze") for i in range(10)] + [("dog", i, "Hund") for i in range(10)]
    csv = ["path,label,split"]
    objects: list[object] = []
    for kind, i, label in rows:
        split = "train" if i < 6 else "validation" if i < 8 else "test"
        name = f"{kind}/{i}.{'png' if kind == 'cat' else 'PNG'}"
        csv.append(f"{name},{label},{split}")
        objects.append({"path": name, "label": label, "split": split, "camera": 7})
    (folder / "table.csv").write_text("\n".join(csv))
    path = write(folder, *objects[:5], "", *objects[5:], objects[0])
    for split in ("train", "val", "test", "trainval"):
        a, b = open_source(path, split), open_source(str(folder / "table.csv"), split)
        assert (a.classes, a.records) == (b.classes, b.records)
        assert len(a.records) > 3
    assert "1 repeated lines of table.jsonl: left out" in a.notes


def test_numbers_are_classes_in_their_order(folder: Path) -> None:
    labels = [9, 10, 2]
    rows = [{"path": f"cat/{i}.png", "label": labels[i % 3]} for i in range(9)]
    source = open_source(write(folder, *rows), "trainval")
    assert source.classes == ("2", "9", "10")
    assert sorted(targets(source).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(source.classes[r.target] == str(labels[int(r.name[4]) % 3]) for r in source.records)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], r"table\.jsonl is empty: give one object a line"),
        ([{"file": "a"}], r"table\.jsonl:1: no 'path': each line must have path and label"),
        ([{"path": "cat/0.png"}], r"table\.jsonl:1: no 'label'"),
        ([{"path": "cat/0.png", "label": "a"}, "{nonsense"], r"table\.jsonl:2: no JSON object: "),
        ([["cat/0.png", "a"]], r"table\.jsonl:1: no JSON object with path and label but \["),
        (
            [{"path": "cat/0.png", "label": "a"}, {"path": "cat/1.png", "label": ["a", "b"]}],
            r":2: the label \['a', 'b'\] is a list, unlike the one at .*:1: give a list to every image, or to none",
        ),
        ([{"path": "cat/0.png", "label": [["a"]]}], r":1: the label \['a'\] is neither a name nor a whole number"),
        ([{"path": "cat/0.png", "label": "a"}, {"path": "cat/1.png"}], r":2: no 'label'"),
        ([{"path": "cat/0.png"}, {"path": "cat/1.png", "label": "a"}], r":1: no 'label'"),
        ([{"path": "cat/0.png", "label": None}], r":1: the label None is neither a name nor a whole number"),
        ([{"path": "cat/0.png", "label": 1.5}], r":1: the label 1\.5 is neither"),
        ([{"path": "cat/0.png", "label": True}], r":1: the label True is neither"),
        ([{"path": "cat/0.png", "label": " "}], r":1: the label is empty"),
        ([{"path": 3, "label": "a"}], r":1: the path 3 is no text"),
        ([{"path": "cat/0.png", "label": "a", "split": "tent"}], r":1: unknown split 'tent'"),
        ([{"path": "cat/77.png", "label": "a"}], r":1: no file .*77\.png; paths count from the table's folder"),
        (
            [{"path": "cat/0.png", "label": "a"}, {"path": "cat/0.png", "label": "b"}],
            r":2: cat/0\.png stands on line 1",
        ),
    ],
)
def test_mistakes_name_the_line(folder: Path, rows: list[object], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_source(write(folder, *rows), "train")
    assert "\n" not in str(caught.value)


def test_a_jsonl_that_is_no_text(folder: Path) -> None:
    (folder / "table.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no UTF-8 text"):
        open_source(str(folder / "table.jsonl"), "train")
