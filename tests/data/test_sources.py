from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.labels import targets

from anyres.config import UserError
from anyres.data.sources import open_source


def names(data: Path, split: str, **options: float) -> list[str]:
    return [r.name for r in open_source(str(data), split, **options).records]


def test_a_folder_is_split_by_hash_in_each_class(folder: Path) -> None:
    train, val = open_source(str(folder), "train"), open_source(str(folder), "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert targets(train).tolist() == [0] * 8 + [1] * 8
    assert targets(val).tolist() == [0, 0, 1, 1]
    assert not {r.name for r in train.records} & {r.name for r in val.records}
    assert sorted(names(folder, "trainval")) == sorted(names(folder, "train") + names(folder, "val"))
    assert names(folder, "test") == names(folder, "val")
    assert "no test split: test is the validation split" in open_source(str(folder), "test").notes
    assert len(names(folder, "val", val_share=0.5)) == 10
    assert all(isinstance(r.source, Path) and r.source.is_file() for r in train.records)


def test_the_hold_out_does_not_depend_on_where_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    before = names(folder, "val")
    folder.rename(tmp_path / "moved")
    assert names(tmp_path / "moved", "val") == before


def test_a_class_of_two_gives_one_to_val_and_a_class_of_one_none(paint, tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpeg", "b/2.JPEG", "c/only.webp"):
        paint(f"s/{name}")
    val = open_source(str(tmp_path / "s"), "val")
    assert targets(val).tolist() == [0, 1]
    assert "no image of class 'c' in val" in val.notes


def test_what_is_left_out_is_told(folder: Path, paint, tmp_path: Path) -> None:
    (folder / "bird").mkdir()
    (folder / "cat" / "deep" / "er").mkdir(parents=True)
    paint("pets/cat/deep/er/x.bmp")
    (folder / "dog" / "notes.txt").write_text("hello")
    (folder / ".hidden").mkdir()
    paint("pets/loose.png")
    (folder / "cat" / "deep" / "again").symlink_to(folder / "cat")
    source = open_source(str(folder), "trainval")
    assert source.classes == ("cat", "dog")
    assert len(source.records) == 21
    told = "\n".join(source.notes)
    assert "class 'bird' has no images: left out" in told
    assert "1 images lie in no class folder (first: loose.png)" in told
    assert "1 files without an image ending (first:" in told


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders(paint, tmp_path: Path, val: str) -> None:
    for part in ("train", val, "test"):
        for label in ("cat", "dog"):
            paint(f"s/{part}/{label}/1.png")
    (tmp_path / "s" / "extra").mkdir()
    for split, part in (("train", "train"), ("val", val), ("test", "test")):
        source = open_source(str(tmp_path / "s"), split)
        assert [r.name for r in source.records] == [f"{part}/cat/1.png", f"{part}/dog/1.png"]
    assert "folder 'extra' lies beside the splits: left out" in source.notes
    assert len(names(tmp_path / "s", "trainval")) == 4


def test_split_folders_without_val_hold_out_from_train_and_test_stays(paint, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for i in range(5):
            paint(f"s/train/{label}/{i}.png")
        paint(f"s/test/{label}/9.png")
    assert len(names(tmp_path / "s", "train")) == 8
    assert len(names(tmp_path / "s", "val")) == 2
    assert names(tmp_path / "s", "test") == ["test/cat/9.png", "test/dog/9.png"]


def test_a_class_may_be_called_train(paint, tmp_path: Path) -> None:
    for label in ("train", "bus"):
        for i in range(2):
            paint(f"s/{label}/{i}.png")
    assert open_source(str(tmp_path / "s"), "train").classes == ("bus", "train")


def test_mistakes_in_folders(folder: Path, paint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder or table .*pet; did you mean 'pets'\?.*groceries"):
        open_source(str(tmp_path / "pet"), "train")
    with pytest.raises(UserError, match="did you mean 'groceries'"):
        open_source("grocerys", "train")
    with pytest.raises(UserError, match="unknown split 'valid'; did you mean 'val'"):
        open_source(str(folder), "valid")
    with pytest.raises(UserError, match=r"val_share is 1\.5"):
        open_source(str(folder), "val", val_share=1.5)
    paint("one/cat/1.png")
    with pytest.raises(UserError, match="only the class 'cat' to train on: two or more are needed"):
        open_source(str(tmp_path / "one"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no class with images"):
        open_source(str(tmp_path / "empty"), "train")
    for name in ("train/cat/1", "train/dog/1", "val/cat/1", "val/dogs/1"):
        paint(f"s/{name}.png")
    with pytest.raises(UserError, match="class 'dogs' of val has no images in train; did you mean 'dog'"):
        open_source(str(tmp_path / "s"), "train")
    paint("v/val/cat/1.png")
    with pytest.raises(UserError, match="has val but no train split"):
        open_source(str(tmp_path / "v"), "train")
    for label in ("a", "b"):
        paint(f"single/{label}/1.png")
    with pytest.raises(UserError, match="has no image for val"):
        open_source(str(tmp_path / "single"), "val")
    with pytest.raises(UserError, match=r"is a file but no \.csv table"):
        open_source(str(folder / "cat" / "0.png"), "train")


def table(folder: Path, text: str, **options: str) -> str:
    path = folder / "table.csv"
    path.write_text(text, **options)
    return str(path)


def test_a_table(folder: Path) -> None:
    rows = [f"cat/{i}.png,Katze,{'train' if i < 6 else 'val' if i < 8 else 'test'}" for i in range(10)]
    rows += [f"dog/{i}.PNG,Hund,{'train' if i < 6 else 'valid' if i < 8 else 'test'}" for i in range(10)]
    path = table(folder, "\n".join(["path,label,split", *rows, rows[0]]), encoding="utf-8-sig")
    for split, count in (("train", 12), ("val", 4), ("test", 4), ("trainval", 16)):
        source = open_source(path, split)
        assert len(source.records) == count
        assert source.classes == ("Hund", "Katze")
    assert "1 repeated lines of table.csv: left out" in source.notes
    assert source.records[0].name == "cat/0.png"
    assert source.records[0].source == folder / "cat/0.png"
    unsplit = table(folder, "label,path\n" + "".join(f"x,cat/{i}.png\ny,dog/{i}.PNG\n" for i in range(5)))
    assert targets(open_source(unsplit, "val")).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("file,label\ncat/0.png,a\n", r"table\.csv:1: no column 'path': the first line must be path,label"),
        ("", r"table\.csv:1: no column 'path'"),
        ("path,label\ncat/0.png,a\ncat/77.png,a\n", r"table\.csv:3: no file .*77\.png; paths count from the table"),
        ("path,label\ncat/0.png,\n", r"table\.csv:2: the column 'label' is empty"),
        ("path,label\n,a\n", r"table\.csv:2: the column 'path' is empty"),
        ("path,label,split\ncat/0.png,a,\n", r"table\.csv:2: the column 'split' is empty"),
        ("path,label,split\ncat/0.png,a,tent\n", r"table\.csv:2: unknown split 'tent'"),
        ("path,label\ncat/0.png,a\n\ncat/0.png,b\n", r"table\.csv:4: cat/0\.png stands on line 2 as a \(train\)"),
    ],
)
def test_mistakes_in_tables_name_the_line(folder: Path, text: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_source(table(folder, text), "train")
    assert "\n" not in str(caught.value)


def test_a_table_that_is_no_text(folder: Path) -> None:
    path = folder / "table.csv"
    path.write_bytes(b"path,label\n\xff\xfe\x00")
    with pytest.raises(UserError, match="no UTF-8 table with commas"):
        open_source(str(path), "train")
