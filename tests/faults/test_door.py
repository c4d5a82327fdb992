"""Whatever ends a verb is one line and an exit code, and nothing half-written stays.

Situations: the system refuses (a full disk, too few descriptors, no memory), and a library says so in its own words
(torch.save, safetensors, NumPy); a fault of ours; nobody reads the output, or stdout is full or ASCII; a link lies
where a file is to be written.
"""

from __future__ import annotations

import errno
import io
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anyres.cli.app import app, main
from anyres.cli.console import say
from anyres.cli.ending import ending
from anyres.config import Stopped, UserError
from anyres.storage import _host, atomic_write, refusal, remove_drafts, write_text
from tests.command import anyres


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """Of a resource of this process, no more than ``most``."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def write_with_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(10**5)}, path)


def write_with_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(10**5)}, path)


def write_with_python(path: Path) -> None:
    path.write_bytes(bytes(4 * 10**5))


@pytest.mark.parametrize("write", [write_with_torch, write_with_safetensors, write_with_python])
def test_a_disk_without_room_is_named_whoever_writes(tmp_path: Path, write: object) -> None:
    assert callable(write)
    refused = pytest.raises(OSError, match=r"x'$")
    with limited(resource.RLIMIT_FSIZE, 10**5), refused as caught, atomic_write(tmp_path / "x") as draft:
        write(draft)
    ended = ending(caught.value)
    assert ended.code == 2
    assert str(tmp_path / "x") in ended.line
    assert "raise the limit" in ended.line or "make room" in ended.line
    assert list(tmp_path.glob(".x*.partial")) == []


def test_memory_and_descriptors_and_pages_of_loaders() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert "memory" in ending(caught.value).line
    with pytest.raises(MemoryError) as full:
        np.empty(10**15)
    assert ending(full.value).code == 2
    opened: list[int] = []
    with limited(resource.RLIMIT_NOFILE, 64), pytest.raises(OSError, match="Too many") as many:
        opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(100))
    for descriptor in opened:
        os.close(descriptor)
    assert "ulimit -n" in ending(many.value).line
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible ... shared memory")
    assert "/dev/shm" in ending(killed).line
    worker = UserError(
        "Caught UserError in ...\nOriginal Traceback (most recent call last):\n  ...\na.UserError: x is bad"
    )
    assert ending(worker).line == "error: x is bad"


def test_a_cause_is_named_and_a_mistake_of_ours_is_not_hidden_behind_one() -> None:
    def raised(cause: Exception, meant: bool) -> Exception:
        try:
            try:
                raise cause
            except Exception as error:
                if meant:
                    raise TypeError("ours") from error
                raise TypeError("ours")  # noqa: B904
        except TypeError as error:
            return error

    assert ending(raised(UserError("x is bad"), meant=True)).line == "error: x is bad"
    assert ending(raised(OSError(28, "No space left on device", "/a"), meant=False)).code == 2
    assert ending(raised(UserError("x is bad"), meant=False)).code == 1
    assert ending(raised(FileNotFoundError(2, "No such file", "/a"), meant=False)).code == 1
    assert ending(Stopped("saved")).code == 130


def test_a_fault_of_ours_keeps_its_traceback_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def boom() -> None:
        raise ZeroDivisionError("a name\x1b[2J\nand more")

    before = list(app.registered_commands)
    app.command()(boom)
    try:
        answer = anyres("boom")
    finally:
        app.registered_commands[:] = before
    (kept,) = tmp_path.glob("anyres-traceback-*.txt")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert str(kept) in answer.err
    assert "\x1b" not in answer.err
    assert "in boom" in kept.read_text()


def test_output_that_nobody_reads_or_that_finds_no_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["anyres", "recipes"])
    reads, writes = os.pipe()
    os.close(reads)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor, code, line in ((writes, 141, ""), (full, 2, "No space left")):
        stream = os.fdopen(descriptor, "w")
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == bool(line)
        stream.close()  # to nowhere by now: raises nothing


def test_any_encoding_takes_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyres.cli.console import open_streams, report_

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    open_streams()
    report_("caf\udce9 \N{EN DASH} \x1b]0;title\x07 [bold]x[/b]")
    say("caf\udce9\u202e\n" + "x" * 10_000)
    out.flush()
    assert out.buffer.getvalue() == b"caf\\xe9 \\u2013 \\x1b]0;title\\x07 [bold]x[/b]\n"
    assert err.buffer.getvalue().startswith(b"caf\\xe9\\u202e xxx")
    assert len(err.buffer.getvalue()) < 5000


def test_nothing_is_written_through_a_link_that_lies_in_the_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "run.json.part", ".run.json.partial", "run.json.partial"):
        (run / name).symlink_to(mine)
    write_text(run / "run.json", "{}")
    assert mine.read_text() == "precious"
    assert (run / "run.json").read_text() == "{}"
    assert not (run / "run.json").is_symlink()


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    for path in (tmp_path, Path(), Path("/")):
        with pytest.raises(IsADirectoryError):
            write_text(path, "x")
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_permissions_of_any_new_file_and_drafts_go(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.safetensors") as draft:
            write_with_safetensors(draft)
        write_text(tmp_path / ("n" * 250), "x")  # as long as a name may be
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
    host = _host()
    (tmp_path / f".run.json.{host}-{2**22 + 1}-0123.partial").touch()  # of a process that is no more
    (tmp_path / f".run.json.{host}-{os.getppid()}-0123.partial").touch()
    (tmp_path / f".run.json.{'f' * 6}-{2**22 + 1}-0123.partial").touch()
    remove_drafts(tmp_path)
    kept = [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    assert len(kept) == 2, "a process that lives, and one on another machine, may still be writing"
    for path in kept:
        os.utime(path, (0, 0))
    remove_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "n" * 250]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("numbers", [1, 1_000, 1_000_000])
def test_a_full_disk_is_known_from_what_torch_says(numbers: int) -> None:
    with pytest.raises((RuntimeError, OSError)) as raised:
        torch.save(torch.zeros(numbers), "/dev/full")
    assert refusal(raised.value) == errno.ENOSPC
    assert refusal(RuntimeError("basic_ios::clear: iostream error")) == errno.ENOSPC
    assert refusal(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
