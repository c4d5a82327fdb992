from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.command import anyres
from tests.data.labels import targets
from tests.data.loading import load
from tests.data.test_loader import same

from anyres.config import UserError
from anyres.data.augment_config import AugmentConfig
from anyres.data.cache import DecodedImages
from anyres.data.decode import Unreadable, decode
from anyres.data.patterns import expand, words_of
from anyres.data.sources import open_source
from anyres.data.views_config import ViewsConfig
from anyres.flow import Record

Members = list[tuple[str, bytes]]


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
    out = io.BytesIO()
    colour = (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256)
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def pack(path: Path, members: Members, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(first: int, count: int) -> Members:
    """Half of them with a number in .cls, half with one in .json; the key of a sample is its seed."""
    members: Members = []
    for i in range(first, first + count):
        members.append((f"{i:06d}.png", picture(i)))
        if i % 2:
            members.append((f"{i:06d}.cls", f"{i % 3 * 10}\n".encode()))
        else:
            members.append((f"{i:06d}.json", json.dumps({"label": i % 3 * 10, "caption": "no"}).encode()))
    return members


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(3):
        pack(tmp_path / "s" / f"train-{shard:06d}.tar", samples(10 * shard, 10))
    pack(tmp_path / "s" / "val-000000.tar", samples(100, 6))
    return tmp_path / "s"


@pytest.mark.parametrize(
    "form", ["{root}", "{root}/*.tar", "{root}/{{train-{{000000..000002}},val-000000}}.tar", "{root}/[tv]*-00000?.tar"]
)
def test_shards_are_read_by_offsets(shards: Path, form: str) -> None:
    data = form.format(root=shards)
    train, val = open_source(data, "train"), open_source(data, "val")
    assert train.classes == val.classes == ("0", "10", "20")
    assert [r.name for r in train.records] == [f"train-{i // 10:06d}.tar/{i:06d}.png" for i in range(30)]
    assert [r.name for r in val.records] == [f"val-000000.tar/{i:06d}.png" for i in range(100, 106)]
    for i, record in enumerate(train.records):
        assert record.target == i % 3
        assert torch.equal(decode(record).image, decode(Record(picture(i), 0, "")).image)


def test_batches_from_shards_are_a_function_of_the_step(shards: Path) -> None:
    images = DecodedImages(open_source(str(shards), "train"), None, 0.0)
    assert not images.cached
    options = {"batch_size": 8, "seed": 5, "stop_step": 5, "repeats": 2}

    def train(start: int, workers: int) -> list:
        views = ViewsConfig(sizes=("16",))
        return list(
            load(images, targets(images.source), AugmentConfig(), views, start_step=start, workers=workers, **options)
        )

    whole = train(0, 0)
    assert same(train(0, 2), whole)
    assert same(train(3, 2), whole[3:])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(categories=["L", "N"], include_characters="-_/ "), min_size=1, max_size=130),
            st.integers(0, 3000),
        ),
        min_size=1,
        max_size=12,
        unique_by=lambda pair: pair[0].strip("/ "),
    )
)
def test_any_names_and_lengths_are_found_again(tmp_path_factory: pytest.TempPathFactory, pairs: list) -> None:
    """Long names and non-ASCII names have extra headers in the tar; offsets hold all the same."""
    folder = tmp_path_factory.mktemp("tars")
    members: Members = []
    for i, (name, length) in enumerate(pairs):
        stem = f"{name.strip('/ ')}_{i}"
        members += [(f"{stem}.txt", b"x" * length), (f"{stem}.png", picture(i)), (f"{stem}.cls", b"ab"[i % 2 :][:1])]
    extra = [(f"z{k}.{end}", data) for k in (0, 1) for end, data in (("jpg", picture(k)), ("cls", b"ab"[k:][:1]))]
    source = open_source(str(pack(folder / "a.tar", [*members, *extra])), "trainval")
    found = {record.source.read() for record in source.records}
    assert {picture(i) for i in range(len(pairs))} <= found
    assert len(source.records) == len(pairs) + 2


def test_what_is_incomplete_is_left_out_and_told(tmp_path: Path) -> None:
    members = [*samples(0, 12), ("lonely.jpg", picture(1)), ("words.cls", b"3"), ("._000001.png", b"mac"), ("x/", b"")]
    members += [("both.png", picture(2)), ("both.json", b'{"label": 20}'), ("both.cls", b"0")]  # .cls has the last word
    members += [("d.e/000000.left.png", picture(2)), ("untold.png", picture(3)), ("untold.json", b'{"caption": "no"}')]
    source = open_source(str(pack(tmp_path / "a.tar", members)), "trainval")
    assert len(source.records) == 13
    assert {r.name: r.target for r in source.records}["a.tar/both.png"] == 0
    told = "\n".join(source.notes)
    assert "2 samples of the shards have no label (first: a.tar/lonely.jpg): left out" in told
    assert "2 samples of the shards have no image" in told


def test_a_broken_image_and_a_cut_shard_are_unreadable_by_name(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [*samples(0, 8), ("zz.png", b"no image"), ("zz.cls", b"0")])
    source = open_source(str(path), "trainval")
    bad = next(r for r in source.records if r.name == "a.tar/zz.png")
    with pytest.raises(Unreadable, match=r"a\.tar/zz\.png: no JPEG, PNG"):
        decode(bad)
    last = source.records[5]
    path.write_bytes(path.read_bytes()[: last.source.offset + 10])
    with pytest.raises(Unreadable, match=r"a\.tar ends within it"):
        decode(last)
    assert decode(source.records[0]).image.shape == (3, 16, 20)
    unreadable, _ = DecodedImages(source, progress=False).report()
    assert (last.name, "a.tar ends within it") in unreadable


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([("a.png", b""), ("a.cls", b" ")], r"a\.tar/a\.cls: the label is empty"),
        ([("a.png", b""), ("a.cls", b"\xff\xfe")], r"a\.tar/a\.cls is no UTF-8 cls"),
        ([("a.png", b""), ("a.json", b"{")], r"a\.tar/a\.json is no UTF-8 json"),
        ([("a.png", b""), ("a.json", b"[1]")], r"a\.tar/a\.json is no JSON object with a label"),
        ([("a.png", b""), ("a.json", b'{"label": [[1, 2]]}')], r"the label \[1, 2\] is neither a name"),
        ([("a.txt", b"")], r"a\.tar holds no image with a label: its members must be named as 0001\.jpg and 0001\.cls"),
        ([], r"a\.tar holds no image with a label"),
    ],
)
def test_mistakes_in_shards(tmp_path: Path, members: Members, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_source(str(pack(tmp_path / "a.tar", members)), "train")
    assert "\n" not in str(caught.value)


def test_what_is_no_plain_tar_and_what_is_not_there(shards: Path, tmp_path: Path) -> None:
    pack(tmp_path / "z" / "a.tar", samples(0, 4), "w:gz")
    with pytest.raises(UserError, match=r"a\.tar is no plain tar .*: a compressed one must be unpacked to \.tar first"):
        open_source(str(tmp_path / "z"), "train")
    with pytest.raises(UserError, match=r"no file .*train-000003\.tar, of the pattern .*\{000000\.\.000003\}"):
        open_source(str(shards / "train-{000000..000003}.tar"), "train")
    with pytest.raises(UserError, match=r"no file .*nothing-\*\.tar"):
        open_source(str(shards / "nothing-*.tar"), "train")
    with pytest.raises(UserError, match=r"no file .*train-5\.tar, of the pattern .*\{5\.\.2\}"):
        open_source(str(shards / "train-{5..2}.tar"), "train")
    (shards / "x.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"has files of different kinds \(\.parquet, \.tar\): name one kind"):
        open_source(str(shards), "train")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{008..011}", ["a-008", "a-009", "a-010", "a-011"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("{a-{0..1},b}.tar", ["a-0.tar", "a-1.tar", "b.tar"]),
        ("{x}", ["{x}"]),
        ("{a,}b", ["ab", "b"]),
        ("a}b{.tar", ["a}b{.tar"]),
    ],
)
def test_brace_expansion(pattern: str, words: list[str]) -> None:
    assert words_of(pattern) == words


def test_expanded_files_stand_once_and_in_order(shards: Path) -> None:
    paths = expand(str(shards / "{train-000001,*}.tar"))
    assert [p.name for p in paths] == [
        "train-000001.tar",
        "train-000000.tar",
        "train-000002.tar",
        "val-000000.tar",
    ]


def test_folders_say_the_split_where_there_are_several(tmp_path: Path) -> None:
    """A folder called test that holds everything is not the test split: only what the files differ in counts."""
    for part, first in (("train", 0), ("validation", 20), ("test", 40)):
        pack(tmp_path / "s" / part / "0.tar", samples(first, 6))
    pattern = str(tmp_path / "s" / "{train,validation,test}" / "*.tar")
    for split, first in (("train", 0), ("val", 20), ("test", 40)):
        names = [r.name for r in open_source(pattern, split).records]
        assert [name[-10:] for name in names] == [f"{i:06d}.png" for i in range(first, first + 6)]
    assert len(open_source(str(tmp_path / "s" / "test"), "trainval").records) == 6
    assert len(open_source(str(tmp_path / "s" / "test" / "0.tar"), "trainval").records) == 6


def test_a_run_on_shards_with_a_pattern_names_what_it_could_not_read(shards: Path, tmp_path: Path) -> None:
    pack(shards / "train-000003.tar", [*samples(60, 6), ("000099.png", b"no image"), ("000099.cls", b"10")])
    values = ["views.sizes=[32]", "data.batch_size=8", "data.cache_side=null", "train.epochs=1", "evaluate.sizes=[32]"]
    data, out = shards / "{train,val}-*.tar", tmp_path / "run"
    answer = anyres("train", "restv2_nano", "--data", data, "--out", out, *values, "data.repeats=2")
    assert answer.code == 0, answer.err
    assert "37 training and 6 held-out images of 3 classes" in answer.err
    assert "each image comes 2 times in a row with other draws: an epoch sees 16 images" in answer.err
    assert "train-000003.tar/000099.png" in (out / "run.json").read_text()
    assert "32" in anyres("eval", out, "--sizes", "32").out
