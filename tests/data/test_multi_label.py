"""Sets whose images have several labels, or none: every form says the same, and nothing but the target differs."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.labels import targets
from tests.data.loading import evaluate, load
from tests.data.test_shards import picture

from anyres.config import UserError
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.hf_torchvision import _class_names
from anyres.data.mix import mix
from anyres.data.mix_config import MixConfig
from anyres.data.sources import Source, open_source
from anyres.data.views_config import ViewsConfig
from anyres.flow import Size

SETS = [(), ("sun",), ("sea", "sun"), ("sand", "sea", "sun"), ("sea",)]  # of labels, in the order of the alphabet


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"{i:02d}.png").write_bytes(picture(i))
    return [f"{i:02d}.png" for i in range(count)]


def told(source: Source) -> dict[str, set[str]]:
    return {record.name: set(source.labels(i)) for i, record in enumerate(source.records)}


def table(folder: Path, name: str, rows: Sequence[Sequence[str]]) -> str:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(folder / name)


NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=6).map(
    lambda name: unicodedata.normalize("NFC", name).strip()  # the form that classes have
)
LABELS = st.lists(NAMES.filter(lambda name: name and "|" not in name), max_size=4, unique=True)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(LABELS, min_size=6, max_size=6).filter(lambda sets: any(sets[:4])))
def test_every_form_says_what_was_written(tmp_path: Path, labels: list[list[str]]) -> None:
    """A column of lists, a JSONL and columns of 0 and 1: the same labels of the same images, in the same splits."""
    names, splits = pictures(tmp_path, 6), ["train"] * 4 + ["val", "test"]
    classes = sorted({label for each in labels[:4] for label in each})
    labels = [[label for label in each if label in classes] for each in labels]
    rows = list(zip(names, labels, splits, strict=True))
    forms = [
        table(tmp_path, "list.csv", [("path", "labels", "split"), *((n, " | ".join(x), s) for n, x, s in rows)]),
        table(
            tmp_path,
            "ticks.csv",
            [
                ("path", "split", *(f" {c} " for c in classes)),
                *((n, s, *(str(int(c in x)) for c in classes)) for n, x, s in rows),
            ],
        ),
    ]
    lines = [json.dumps({"path": n, "label": x, "split": s}) for n, x, s in rows]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    if not {"path", "label", "labels", "split"} & {*classes}:
        assert told(open_source(forms[1], "trainval")) == {n: set(x) for n, x, s in rows if s != "test"}
    for split in ("train", "val", "test"):
        expected = {n: set(x) for n, x, s in rows if s == split}
        for form in (forms[0], str(tmp_path / "lines.jsonl")):
            source = open_source(form, split)
            assert source.labelling == "several"
            assert set(source.classes) == set(classes)
            assert told(source) == expected
            assert targets(source).dtype == torch.bool
            assert targets(source).tolist() == [[c in expected[r.name] for c in source.classes] for r in source.records]


def test_ticked_classes_keep_the_order_of_their_columns(tmp_path: Path) -> None:
    names = pictures(tmp_path, 4)
    rows = [("path", "zebra", "ape"), *((name, str(i % 2), str(i // 2)) for i, name in enumerate(names))]
    source = open_source(table(tmp_path, "t.csv", rows), "trainval")
    assert source.classes == ("zebra", "ape")
    assert sorted(targets(source).int().tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    rows[3] = (names[2], "2", "1")
    with pytest.raises(UserError, match=r"t\.csv:4: the column 'zebra' holds '2': of a class it must be 0 or 1"):
        open_source(table(tmp_path, "t.csv", rows), "train")


def parquet(path: Path, values: list[list[int]], kind: object) -> str:
    """A parquet file as Hugging Face writes it, with classes by number."""
    cells = [picture(i) for i in range(len(values))]
    features = {"info": {"features": {"image": {"_type": "Image"}, "labels": kind}}}
    made = pa.table({"image": pa.array(cells, pa.binary()), "labels": pa.array(values, pa.list_(pa.int64()))})
    pq.write_table(made.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    return str(path)


NAMED = {"names": ["zebra", "ape", "cow"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "kind", [{"feature": NAMED, "_type": "Sequence"}, {"feature": NAMED, "_type": "List"}, [NAMED]]
)
def test_parquet_lists(tmp_path: Path, kind: object) -> None:
    values = [[0, 2], [1], [], [2], [0], [1, 2]]
    source = open_source(parquet(tmp_path / "a.parquet", values, kind), "trainval")
    assert source.labelling == "several"
    assert source.classes == ("zebra", "ape", "cow")
    assert sorted(r.target for r in source.records) == sorted(map(tuple, values))
    bad = parquet(tmp_path / "b.parquet", [[0], [3]], kind)
    with pytest.raises(UserError, match=r"b\.parquet row 1: the label 3 is none of the 3 classes"):
        open_source(bad, "train")


def test_class_names_of_hugging_face_features() -> None:
    """Their attributes as the library documents them: Sequence and List have ``feature``, ClassLabel has ``names``."""
    label = SimpleNamespace(names=["a", "b"])
    assert _class_names(label) == _class_names(SimpleNamespace(feature=label)) == _class_names([label]) == ["a", "b"]
    assert _class_names(SimpleNamespace(feature=SimpleNamespace(dtype="int64"))) == _class_names(None) == []


def test_shards_with_lists(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(6):
            for ending, data in (("png", picture(i)), ("json", json.dumps({"label": SETS[i % 5]}).encode())):
                member = tarfile.TarInfo(f"{i}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = open_source(str(tmp_path / "a.tar"), "trainval")
    assert source.classes == ("sand", "sea", "sun")
    assert sorted(map(tuple, map(source.labels, range(6)))) == sorted([*SETS, ()])


def shore(folder: Path, count: int = 30) -> str:
    rows = [("path", "labels"), *((n, "|".join(SETS[i % 5])) for i, n in enumerate(pictures(folder, count)))]
    return table(folder, "shore.csv", rows)


def test_held_out_images_have_every_class_and_some_without_any(tmp_path: Path) -> None:
    data = shore(tmp_path)
    train, val = open_source(data, "train"), open_source(data, "val")
    assert len(train.records) + len(val.records) == 30
    assert train.present == val.present == {0, 1, 2}
    assert () in {r.target for r in val.records}
    assert not {r.name for r in train.records} & {r.name for r in val.records}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_differ_from_single_label_ones_in_the_target_alone(tmp_path: Path, workers: int) -> None:
    """Order, views, repeats and draws are what they are with one label each; targets are rows of zeros and ones."""
    several = open_source(shore(tmp_path), "trainval")
    images = DecodedImages(several, None, 0.0, progress=False)
    single = torch.arange(len(several.records))
    options = {"batch_size": 8, "seed": 3, "start_step": 2, "stop_step": 6, "repeats": 3, "workers": workers}

    def batches(targets: torch.Tensor) -> list:
        return list(load(images, targets, AugmentConfig(), ViewsConfig(sizes=(24, 16)), **options))

    for a, b in zip(batches(targets(several)), batches(single), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.draw, b.draw)
        assert a.targets.of(0).dtype == torch.bool
        assert torch.equal(a.targets.of(0), targets(several)[a.index])
    scored = list(evaluate(images, targets(several), Size(16, 16), batch_size=7, workers=workers))
    assert torch.equal(torch.cat([batch.targets.of(0) for batch in scored]), targets(several))


def test_mixing_and_smoothing_class_by_class() -> None:
    target = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    views = (torch.rand(4, 3, 16, 16), torch.rand(4, 3, 8, 8))
    for how in (MixConfig(mixup=0.8), MixConfig(cutmix=1.0)):
        for seed in range(5):
            mixed, soft = mix(tuple(view.clone() for view in views), target, 3, how, np.random.default_rng(seed))
            share = soft[0, 0].item()  # of the first image, mixed with the last: both have class 0 ...
            assert share == pytest.approx(1)
            lam = 1 - soft[0, 1].item()  # ... and only the last has class 1
            torch.testing.assert_close(soft, lam * target + (1 - lam) * target.flip(0))
            if how.mixup:
                torch.testing.assert_close(mixed[1], lam * views[1] + (1 - lam) * views[1].flip(0))
    plain, soft = mix(views, target, 3, MixConfig(smoothing=0.2), np.random.default_rng(0))
    assert plain[0] is views[0]
    torch.testing.assert_close(soft, torch.where(target > 0, 0.9, 0.1))
    _, each = mix(views, target, 3, MixConfig(mixup=0.8, share=False), np.random.default_rng(0))
    assert each.shape == (2, 4, 3)


def test_a_bar_in_a_class_name_is_hinted_at_and_stays(tmp_path: Path) -> None:
    names = pictures(tmp_path, 6)
    data = table(tmp_path, "t.csv", [("path", "label"), *((n, ["a", "a|b"][i % 2]) for i, n in enumerate(names))])
    source = open_source(data, "train")
    assert source.classes == ("a", "a|b")
    assert source.labelling != "several"
    assert "t.csv has classes such as 'a|b': several labels go in a column 'labels'" in source.notes


def test_images_without_labels(tmp_path: Path, paint) -> None:
    """Only who asks for it gets them; others read the line that they always read."""
    for name in ("flat/x.png", "flat/deep/er/y.png", "flat/deep/z.png", "split/train/a.png", "split/train/b/c.png"):
        paint(name)
    paint("split/val/d.png")
    (tmp_path / "t.csv").write_text("path,width\nflat/x.png,40\nflat/deep/z.png,40\n")
    (tmp_path / "t.jsonl").write_text('{"path": "flat/x.png"}\n')
    pq.write_table(pa.table({"image": [picture(0)], "id": [7]}), tmp_path / "t.parquet")
    (tmp_path / "one.csv").write_text("path,label\nflat/x.png,same\nflat/deep/z.png,same\n")
    forms = {
        "flat": (3, "has only the class 'deep' to train on: two or more are needed"),
        "t.csv": (2, r"t\.csv:1: no column 'label': the first line must be path,label"),
        "t.jsonl": (1, r"t\.jsonl:1: no 'label': each line must have path and label"),
        "t.parquet": (1, r"t\.parquet has no column 'label'"),
        "one.csv": (2, "has only the class 'same' to train on"),
        "split": (2, ""),
    }
    for name, (count, line) in forms.items():
        if line:
            with pytest.raises(UserError, match=line):
                open_source(str(tmp_path / name), "train")
        source = open_source(str(tmp_path / name), "train", wanted="optional")
        assert (source.classes, len(source.records)) == ((), count)
        assert targets(source).tolist() == [-1] * count
    split = open_source(str(tmp_path / "split"), "trainval", wanted="optional")
    assert [r.name for r in split.records] == ["train/a.png", "train/b/c.png", "val/d.png"]
    with pytest.raises(UserError, match="flat has no image for val"):
        open_source(str(tmp_path / "flat"), "val", wanted="optional")


def test_who_takes_images_without_labels_keeps_the_labels_that_there_are(folder: Path) -> None:
    assert open_source(str(folder), "train", wanted="optional") == open_source(str(folder), "train")
