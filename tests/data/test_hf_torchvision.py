"""torchvision's sets from files in their layouts, Hugging Face datasets where the library is there."""

from __future__ import annotations

import importlib
import inspect
import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.labels import targets
from tests.data.loading import load
from tests.data.test_loader import same
from tests.data.test_shards import picture
from torchvision import datasets

from anyres.config import UserError
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.decode import decode
from anyres.data.hf_torchvision import SETS
from anyres.data.sources import open_source
from anyres.data.views_config import ViewsConfig

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_OFFLINE", "1")


def idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: two zero bytes, the type (8: bytes), the rank, the big-endian sides, the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_mnist_like_sets_are_grey_arrays_with_named_classes(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    pictures = {"train": RNG.integers(0, 256, (20, 28, 28)), "t10k": RNG.integers(0, 256, (10, 28, 28))}
    for part, pixels in pictures.items():
        idx(raw / f"{part}-images-idx3-ubyte", pixels)
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(len(pixels)) % 10)
    data = f"torchvision:FashionMNIST@{tmp_path}"
    test = open_source(data, "test")
    assert test.classes[:2] == ("T-shirt/top", "Trouser")  # the set's own order, not the alphabet's
    assert targets(test).tolist() == list(range(10))
    train = open_source(data, "trainval")
    assert len(train.records) == 20
    for record in train.records:
        done = decode(record)
        row = int(record.name.rsplit(" ", 1)[1])
        assert done.note is None
        assert torch.equal(done.image, torch.from_numpy(pictures["train"][row].astype(np.uint8)).expand(3, 28, 28))
        assert record.target == row % 10
    images = DecodedImages(train, None, 0.0)
    options = {"batch_size": 4, "seed": 1, "start_step": 0, "stop_step": 3}

    def batches(workers: int) -> list:
        views = ViewsConfig(sizes=(20,))
        return list(load(images, targets(train), AugmentConfig(), views, workers=workers, **options))

    assert same(batches(2), batches(0))


def test_cifar_is_colour_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("torchvision.datasets.cifar"), "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows[name] = RNG.integers(0, 256, (4, 3072)).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": rows[name], "labels": [3, 1, 2, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "zebra", "bird", "cat"]}))
    train = open_source(f"torchvision:CIFAR10@{tmp_path}", "trainval")
    assert train.classes == ("airplane", "zebra", "bird", "cat")
    by_name = {record.name: record for record in train.records}
    pixels = torch.from_numpy(rows["data_batch_2"][1].reshape(3, 32, 32))
    assert torch.equal(decode(by_name["CIFAR10 train 5"]).image, pixels)
    assert by_name["CIFAR10 train 5"].target == 1
    assert len(open_source(f"torchvision:CIFAR10@{tmp_path}", "test").records) == 4


def test_sets_of_files_have_paths_and_their_splits(tmp_path: Path) -> None:
    labels = tmp_path / "dtd" / "dtd" / "labels"
    labels.mkdir(parents=True)
    for i, part in enumerate(("train", "val", "test")):
        lines = []
        for kind in ("woven", "banded"):
            path = tmp_path / "dtd" / "dtd" / "images" / kind / f"{part}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i))
            lines.append(f"{kind}/{part}.png")
        (labels / f"{part}1.txt").write_text("\n".join(lines) + "\n")
    for part in ("train", "val", "test"):
        source = open_source(f"torchvision:DTD@{tmp_path}", part)
        assert source.classes == ("banded", "woven")
        assert [(record.source.parent.name, record.source.name) for record in source.records] == [
            ("woven", f"{part}.png"),
            ("banded", f"{part}.png"),
        ]
        assert targets(source).tolist() == [1, 0]


def test_unnamed_classes_are_numbers_and_one_split_is_train(tmp_path: Path) -> None:
    for kind in ("River", "Forest"):
        for i in range(5):
            path = tmp_path / "eurosat" / "2750" / kind / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(io.BytesIO(picture(i))).save(path)
    source = open_source(f"torchvision:EuroSAT@{tmp_path}", "val")
    assert source.classes == ("Forest", "River")
    assert len(source.records) == 2
    base = tmp_path / "gtsrb"
    for sign in range(11):
        path = base / "GTSRB" / "Training" / f"{sign:05d}" / "0.ppm"
        path.parent.mkdir(parents=True)
        Image.open(io.BytesIO(picture(sign))).save(path)
    (base / "GTSRB" / "Final_Test" / "Images").mkdir(parents=True)
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n0.ppm;10\n")
    Image.open(io.BytesIO(picture(10))).save(base / "GTSRB" / "Final_Test" / "Images" / "0.ppm")
    signs = open_source(f"torchvision:GTSRB@{tmp_path}", "test")
    assert signs.classes == tuple(map(str, range(11)))
    assert targets(signs).tolist() == [10]


@pytest.mark.parametrize("kind", SETS)
def test_torchvisions_classes_have_what_the_table_says(kind: str) -> None:
    parts, images, labels, named = SETS[kind]
    cls = getattr(datasets, kind)
    text = "".join(inspect.getsource(c) for c in cls.__mro__ if c.__module__.startswith("torchvision"))
    for attribute in (images, *([labels] if labels else []), *(["classes"] if named else [])):
        assert f"self.{attribute}" in text or f"    {attribute} = [" in text, attribute
    parameters = inspect.signature(cls.__init__).parameters
    assert "download" in parameters
    for options in parts.values():
        for key, value in options.items():
            assert key in parameters
            assert f'"{value}"' in text or isinstance(value, bool) or value in text
    assert "train" in parts


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("torchvision:CIFAR1", r"torchvision:CIFAR1 is not known; did you mean 'CIFAR10'.*\(known: CIFAR10, CIFAR100"),
        ("torchvision:CIFAR10@{here}/no", r"torchvision:CIFAR10 cannot be had in .* the network is switched off"),
        ("torchvision:DTD@{here}", r"torchvision:DTD cannot be had in .*go online once, or put its files there"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, data: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_source(data.format(here=tmp_path), "train")
    assert "\n" not in str(caught.value)


def test_without_the_library_hugging_face_sets_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf:me/pets needs datasets, .* run pip install 'anyres\[data\]'"):
        open_source("hf:me/pets", "train")


def hub_folder(root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part, first, count in (("train", 0, 12), ("validation", 20, 4), ("test", 30, 4), ("extra", 40, 2)):
        cells = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(first, first + count)]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        labels = [i % 2 if part != "test" else -1 for i in range(count)]
        table = pa.table({"photo": pa.array(cells, struct), "label": labels})
        features = (
            '{"info": {"features": {"photo": {"_type": "Image"}, '
            '"label": {"names": ["zebra", "ape"], "_type": "ClassLabel"}}}}'
        )
        root.mkdir(exist_ok=True)
        pq.write_table(
            table.replace_schema_metadata({"huggingface": features}), root / f"{part}-00000-of-00001.parquet"
        )
    yaml = "".join(
        f"  - split: {part}\n    path: {part}-*.parquet\n" for part in ("train", "validation", "test", "extra")
    )
    (root / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{yaml}---\n")
    return root


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    data = f"hf:{hub_folder(tmp_path / 'pets')}"
    train, val = open_source(data, "train"), open_source(data, "val")
    assert train.classes == ("zebra", "ape")
    assert targets(train).tolist() == [0, 1] * 6
    assert [record.name for record in val.records] == [f"validation row {i}" for i in range(4)]
    for i, record in enumerate(train.records):
        assert record.source.read() == picture(i)
    told = "\n".join(open_source(data, "test").notes)
    assert "split 'extra' of hf:" in told
    assert "split 'test' of hf:" in told
    with pytest.raises(UserError, match="cannot be had: ") as caught:
        open_source(f"hf:{tmp_path}/nothing", "train")
    assert "\n" not in str(caught.value)
