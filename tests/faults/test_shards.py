"""Shards that are not whole: cut between two members, a header damaged, two archives joined, a name twice, a member or
label larger than the file; and parquet files that are damaged, or whose copy in the cache is."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anyres.config import UserError
from anyres.data import parquet
from anyres.data.sources import open_source


def pack(path: Path, names: list[str], big: int = 0) -> Path:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = picture.getvalue() if name.endswith("png") else b"1" * big or name[:1].encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


NAMES = [f"{i}.{ending}" for i in range(10) for ending in ("png", "cls")]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return pack(tmp_path / "a.tar", NAMES)


def starts(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def read(path: Path) -> int:
    return len(open_source(str(path), "trainval").records)


def test_a_shard_cut_anywhere_is_refused(shard: Path) -> None:
    whole, offsets = shard.read_bytes(), starts(shard)
    assert read(shard) == 10
    for where in (*offsets[1:], *(offset + 512 for offset in offsets), offsets[5] + 100, offsets[-1] + 1024):
        for rest in (b"", bytes(512)):
            shard.write_bytes(whole[:where] + rest)
            with pytest.raises(UserError, match=r"a\.tar is (cut short|damaged|no plain tar)"):
                read(shard)


def test_every_flipped_bit_of_a_header_is_noticed(shard: Path) -> None:
    whole, offsets, draw = shard.read_bytes(), starts(shard), random.Random(0)
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[draw.choice(offsets) + draw.randrange(500)] ^= 1 << draw.randrange(8)
        shard.write_bytes(flipped)
        with pytest.raises(UserError, match=r"a\.tar is (damaged|no plain tar)"):
            read(shard)


def test_archives_that_are_joined_are_not_read_by_half(shard: Path) -> None:
    shard.write_bytes(2 * shard.read_bytes())
    with pytest.raises(UserError, match=r"a\.tar goes on after its end at byte \d+, as joined archives do"):
        read(shard)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [*NAMES, "3.png"])
    with pytest.raises(UserError, match=r"a\.tar has two members called '3\.png', at bytes \d+ and \d+"):
        read(path)


def test_a_member_larger_than_the_file_and_a_label_too_large_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("0.png")
    info.size = 10**18
    path.write_bytes(info.tobuf() + bytes(2048))
    with pytest.raises(UserError, match=r"a\.tar is (cut short|no plain tar)"):
        read(path)
    pack(path, NAMES[:2], big=2**24 + 1)
    with pytest.raises(UserError, match=r"a\.tar/0\.cls has 16777217 bytes: a label has a few"):
        read(path)


def rows(path: Path) -> Path:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    pq.write_table(pa.table({"image": [picture.getvalue()] * 40, "label": [i % 2 for i in range(40)]}), path)
    return path


def test_damaged_parquet_names_the_file(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.parquet")
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes(24) + whole[place + 24 :])
        try:
            assert read(path) == 40
        except UserError as error:
            assert "a.parquet" in str(error)  # noqa: PT017


def test_a_damaged_copy_in_the_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_IN_MEMORY", 0)
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "cache"))
    path = rows(tmp_path / "a.parquet")
    assert read(path) == 40
    (copy,) = (tmp_path / "cache/parquet").glob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:200])
    draft = copy.with_name(f".{copy.name}.0.partial")
    draft.write_bytes(b"left by a killed process")
    assert read(path) == 40
    assert not draft.exists()
