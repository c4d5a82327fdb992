from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.data.labels import targets
from tests.data.loading import load
from tests.data.test_loader import same
from tests.data.test_shards import picture

from anyres.config import UserError
from anyres.data import parquet
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable, decode
from anyres.data.sources import open_source
from anyres.data.views_config import ViewsConfig
from anyres.flow import Record

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, object], names: list[str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=4)
    return path


def images(first: int, count: int, kind: str = "binary") -> pa.Array:
    data = [picture(i) for i in range(first, first + count)]
    if kind == "struct":
        return pa.array([{"bytes": d, "path": None} for d in data], STRUCT)
    return pa.array(data, pa.large_binary() if kind == "large" else pa.binary())


@pytest.mark.parametrize("kind", ["binary", "large", "struct"])
@pytest.mark.parametrize("copied", [False, True])
def test_rows_are_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, copied: bool) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    if copied:
        monkeypatch.setattr(parquet, "_IN_MEMORY", 0)
    for part in range(2):
        write(
            tmp_path / "p" / f"train-0000{part}-of-00002.parquet",
            {"image": images(10 * part, 10, kind), "label": [i % 2 for i in range(10)], "more": [0] * 10},
            ["Zebra", "Ape"],
        )
    write(tmp_path / "p" / "validation.parquet", {"image": images(50, 3, kind), "label": [1, 0, 1]}, ["Zebra", "Ape"])
    train, val = (open_source(str(tmp_path / "p"), split) for split in ("train", "val"))
    assert train.classes == ("Zebra", "Ape")  # the file's own order
    assert targets(train).tolist() == [0, 1] * 10
    assert targets(val).tolist() == [1, 0, 1]
    assert train.records[13].name == "train-00001-of-00002.parquet row 3"
    for i, record in enumerate(train.records):
        assert torch.equal(decode(record).image, decode(Record(picture(i), 0, "")).image)
    kept = list((tmp_path / "cache").rglob("*.arrow"))
    assert len(kept) == (3 if copied else 0)
    assert any("are mapped from copies in" in note for note in train.notes) == copied
    if copied:  # made once
        before = [path.stat().st_mtime_ns for path in kept]
        open_source(str(tmp_path / "p"), "train")
        assert [path.stat().st_mtime_ns for path in kept] == before


def test_mapped_rows_are_the_same_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "_IN_MEMORY", 0)
    path = write(tmp_path / "a.parquet", {"image": images(0, 12, "struct"), "label": ["a", "b", "c"] * 4})
    pictures = DecodedImages(open_source(str(path), "trainval"), None, 0.0)

    def train(workers: int) -> list:
        options = {"batch_size": 4, "seed": 1, "start_step": 0, "stop_step": 6, "workers": workers}
        return list(load(pictures, targets(pictures.source), AugmentConfig(), ViewsConfig(sizes=(16,)), **options))

    assert same(train(2), train(0))


def test_a_split_column_numbers_and_paths(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "beside.png").write_bytes(picture(77))
    cells = [{"bytes": None, "path": "beside.png"}, *({"bytes": picture(i), "path": "x.jpg"} for i in range(1, 9))]
    splits = ["train"] * 5 + ["valid", "validation", "TEST", "test"]
    path = write(
        tmp_path / "p" / "all.parquet",
        {"image": pa.array(cells, STRUCT), "label": [10, 9, 10, 9, 10, 9, 10, 9, 10], "split": splits},
    )
    source = open_source(str(path), "train")
    assert source.classes == ("9", "10")  # by value
    assert targets(source).tolist() == [1, 0, 1, 0, 1]
    assert source.records[0].source == tmp_path / "p" / "beside.png"
    assert torch.equal(decode(source.records[0]).image, decode(Record(picture(77), 0, "")).image)
    assert [len(open_source(str(path), split).records) for split in ("val", "test")] == [2, 2]


def test_empty_and_broken_cells_are_unreadable_by_name(tmp_path: Path) -> None:
    cells = pa.array([picture(0), None, b"", b"no image", *map(picture, range(4))], pa.binary())
    source = open_source(str(write(tmp_path / "a.parquet", {"image": cells, "label": ["a", "b"] * 4})), "trainval")
    assert decode(source.records[0]).image.shape == (3, 16, 20)
    for row, line in ((1, "row 1: the cell is empty"), (2, "row 2: the cell is empty"), (3, "row 3: no JPEG, PNG")):
        with pytest.raises(Unreadable, match=rf"a\.parquet {line}"):
            decode(next(r for r in source.records if r.name.endswith(f"row {row}")))
    unreadable, _ = DecodedImages(source, progress=False).report()
    assert len(unreadable) == 3


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"img": [b""], "label": [1]}, r"no column 'image'; did you mean 'img'\? \(columns: img, label\)"),
        ({"image": [b""], "lable": [1]}, r"no column 'label'; did you mean 'lable'"),
        ({"image": ["a.jpg"], "label": [1]}, r"the column 'image' holds string, neither bytes nor \{bytes, path\}"),
        ({"image": [b""], "label": [1.5]}, r"a\.parquet row 0: the label 1\.5 is neither a name nor a whole number"),
        ({"image": [b""], "label": [None]}, r"a\.parquet row 0: the label None is neither"),
        ({"image": [b""], "label": [[[1, 2]]]}, r"row 0: the label \[1, 2\] is neither a name nor a whole number"),
        ({"image": [b""], "label": [1], "split": ["tent"]}, r"row 0: unknown split 'tent' \(known: train, val, test\)"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, r"a\.parquet has no rows"),
    ],
)
def test_mistakes_in_columns(tmp_path: Path, columns: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_source(str(write(tmp_path / "a.parquet", columns)), "train")
    assert "\n" not in str(caught.value)


def test_files_that_disagree_or_are_none(tmp_path: Path) -> None:
    write(tmp_path / "p" / "a.parquet", {"image": images(0, 2), "label": [0, 1]}, ["x", "y"])
    write(tmp_path / "p" / "b.parquet", {"image": images(0, 2), "label": [0, 1]}, ["y", "x"])
    with pytest.raises(UserError, match="the parquet files name different classes"):
        open_source(str(tmp_path / "p"), "train")
    write(tmp_path / "c.parquet", {"image": images(0, 2), "label": [0, 2]}, ["x", "y"])
    with pytest.raises(UserError, match=r"c\.parquet row 1: the label 2 is none of the 2 classes"):
        open_source(str(tmp_path / "c.parquet"), "train")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"d\.parquet is no parquet file that can be read: "):
        open_source(str(tmp_path / "d.parquet"), "train")
    (tmp_path / "e.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"e\.parquet is no parquet file that can be read: "):
        open_source(str(tmp_path / "e.parquet"), "train")
